#!/bin/sh
# Installs PgBouncer for the tests behind poolers, where that can be done: as root on Debian or Ubuntu. Elsewhere
# these tests fail, and say what they need.
set -eu
if command -v pgbouncer >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  exit 0
fi
echo "No PgBouncer here: installing the package pgbouncer (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends pgbouncer >&2 || {
  apt-get update -qq >&2 || true
  apt-get install -y -qq --no-install-recommends pgbouncer >&2 || echo "PgBouncer could not be installed." >&2
}
