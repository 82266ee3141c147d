#!/usr/bin/env bash
# Gets Debian's redis-server for the tests, if this is a Debian and we are root. Without it the tests run on Valkey and report Redis as NOT RUN.
set -uo pipefail
command -v redis-server >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "redis-server is not installed: what needs it will be reported as NOT RUN (Debian: apt-get install redis-server)"
  exit 0
fi
echo "installing redis-server for the tests ..."
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server; } >/dev/null 2>&1 ||
  echo "redis-server could not be installed: what needs it will be reported as NOT RUN"
exit 0
