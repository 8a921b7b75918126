#!/bin/sh
# Installs Redis for the comparison, where that can be done: as root on Debian or Ubuntu. Elsewhere the command
# says what it needs. The package's own service is not wanted: the comparison starts a server of its own.
set -eu
if command -v redis-server >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  exit 0
fi
echo "No Redis here: installing the package redis-server (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends redis-server >&2 || {
  apt-get update -qq >&2 || true
  apt-get install -y -qq --no-install-recommends redis-server >&2 || echo "Redis could not be installed." >&2
}
