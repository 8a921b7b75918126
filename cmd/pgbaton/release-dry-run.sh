#!/bin/sh
# Usage: release-dry-run.sh VERSION DIRECTORY
#
# Does with the tree what a release and its users would do: makes a module proxy of it, installs the command from there, builds it for every
# system, and leaves binaries and man pages in DIRECTORY. The module cache is one of its own, so that the version is forgotten afterwards.
set -eu
version=$1
mkdir -p "$2"
dist=$(cd "$2" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT

cd "$here"
go run ./internal/mkproxy ../.. "$version" "$work/proxy"
go run ./internal/mkdocs man "$dist/man"
echo "man pages: $(find "$dist/man" -name '*.1' | wc -l)"

# What others have published comes from the module cache that is there, if it is there.
GOPROXY="file://$work/proxy,file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)"
GOMODCACHE="$work/modules"
GOFLAGS="-modcacherw -trimpath"
GOSUMDB=off
GOWORK=off
export GOPROXY GOMODCACHE GOFLAGS GOSUMDB GOWORK

cd "$work"
GOBIN="$work/bin" go install "github.com/pgbaton/pgbaton/cmd/pgbaton@$version"
installed=$("$work/bin/pgbaton" --version)
echo "go install github.com/pgbaton/pgbaton/cmd/pgbaton@$version: $installed"
case $installed in *"$version") ;; *) echo "it says another version" >&2; exit 1 ;; esac

mkdir build
cd build
cat >go.mod <<MOD
module example.com/release

go 1.25.0
MOD
go get "github.com/pgbaton/pgbaton/cmd/pgbaton@$version" 2>/dev/null
for system in linux darwin windows; do
  for machine in amd64 arm64; do
    suffix=
    [ "$system" = windows ] && suffix=.exe
    file="$dist/pgbaton-$version-$system-$machine$suffix"
    CGO_ENABLED=0 GOOS=$system GOARCH=$machine go build -ldflags='-s -w' -o "$file" github.com/pgbaton/pgbaton/cmd/pgbaton
    echo "$(wc -c <"$file") bytes: ${file##*/}"
  done
done
