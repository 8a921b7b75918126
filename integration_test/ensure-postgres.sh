#!/bin/sh
# Usage: ensure-postgres.sh WITH_POSTGRES
#
# Succeeds when the program with-postgres can get a PostgreSQL server. On a Debian or Ubuntu without any, root gets the
# package postgresql installed; anybody else is told the ways to get one.
set -eu
with_postgres=$1

if text=$("$with_postgres" -look 2>&1); then
  exit 0
fi

# A DATABASE_URL that does not answer is a mistake to tell of, not a reason to install anything.
if [ -n "${DATABASE_URL:-}" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null ||
  ! grep -Eq '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; then
  printf '%s\n' "$text" >&2
  exit 1
fi

# Only the programs are used: the cluster that the package sets up is left as it is.
echo "No DATABASE_URL, no Docker and no PostgreSQL programs here: installing the package postgresql (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2 || true # the lists already there may do
apt-get install -y -qq --no-install-recommends postgresql >&2
"$with_postgres" -look >/dev/null
