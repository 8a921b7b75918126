#!/bin/sh
# Usage: module-budget.sh MOST
#
# Counts the modules in the build list of a program that imports the library and nothing else, and fails when
# there are more than MOST. (Such a program's own go.mod decides nothing here, the library's does.)
set -eu
most=$1
library=$(cd "$(dirname "$0")/.." && pwd)
consumer=$(mktemp -d)
trap 'rm -rf "$consumer"' EXIT

cd "$consumer"
cat >go.mod <<MOD
module example.com/consumer

go 1.25.0

require github.com/pgbaton/pgbaton v0.0.0

replace github.com/pgbaton/pgbaton => $library
MOD
cat >main.go <<GO
package main

import _ "github.com/pgbaton/pgbaton"

func main() {}
GO
go mod tidy >/dev/null 2>&1 || go mod tidy
modules=$(go list -m all)
count=$(printf '%s\n' "$modules" | wc -l)
echo "the library brings $count modules, itself and the program included (at most $most)"
if [ "$count" -gt "$most" ]; then
  printf '%s\n' "$modules"
  exit 1
fi
