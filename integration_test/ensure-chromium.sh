#!/bin/sh
# Installs Chromium for the tests of the page, where that can be done: as root on Debian. Elsewhere these tests fail, and
# say what they need.
set -eu
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
  [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  exit 0
fi
echo "No Chromium here: installing the package chromium (apt-get)." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends chromium >&2 || {
  apt-get update -qq >&2 || true
  apt-get install -y -qq --no-install-recommends chromium >&2 || echo "Chromium could not be installed." >&2
}
