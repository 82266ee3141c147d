#!/usr/bin/env bash
# Gets Debian's redis-server and postgresql for the tests, if this is a Debian and we are root. Without Redis the tests run on Valkey, without
# PostgreSQL on SQLite, and report what needs the other as NOT RUN.
set -uo pipefail

wanted=()
command -v redis-server >/dev/null || wanted+=(redis-server)
compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || wanted+=(postgresql)
[ ${#wanted[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "${wanted[*]}: not installed; what needs it will be reported as NOT RUN (Debian: apt-get install ${wanted[*]})"
  exit 0
fi
echo "installing ${wanted[*]} for the tests ..."
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
apt-get update -qq >/dev/null 2>&1
for package in "${wanted[@]}"; do
  apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 ||
    echo "$package could not be installed: what needs it will be reported as NOT RUN"
done
exit 0
