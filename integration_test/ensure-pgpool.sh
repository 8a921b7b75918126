#!/bin/sh
# Installs Pgpool-II for the tests behind poolers, where that can be done: as root on Debian or Ubuntu. Elsewhere
# these tests fail, and say what they need.
set -eu
if command -v pgpool >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  exit 0
fi
echo "No Pgpool-II here: installing the package pgpool2 (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends pgpool2 >&2 || {
  apt-get update -qq >&2 || true
  apt-get install -y -qq --no-install-recommends pgpool2 >&2 || echo "Pgpool-II could not be installed." >&2
}
