#!/bin/sh
# Installs Patroni and etcd for the tests of failovers, where that can be done: as root on Debian or Ubuntu. Elsewhere
# these tests fail and say what they need. Only the programs are used: no service of the packages is started. Patroni also
# needs pg_rewind and pg_basebackup, which come with the package postgresql.
set -eu
if { command -v patroni && command -v patronictl && command -v etcd; } >/dev/null || [ "$(id -u)" != 0 ] ||
  ! command -v apt-get >/dev/null; then
  exit 0
fi
echo "No Patroni or etcd here: installing the packages patroni and etcd-server (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive

# A package's script starts its service unless this file, which Debian's policy names for it, says no.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  trap 'exit 1' HUP INT TERM
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
packages="patroni python3-etcd etcd-server"
for rewind in /usr/lib/postgresql/*/bin/pg_rewind; do
  [ -x "$rewind" ] || packages="$packages postgresql"
done
# shellcheck disable=SC2086 # a list
apt-get install -y -qq --no-install-recommends $packages >&2 || {
  apt-get update -qq >&2 || true
  # shellcheck disable=SC2086 # a list
  apt-get install -y -qq --no-install-recommends $packages >&2 || echo "Patroni and etcd could not be installed." >&2
}
