#!/bin/sh
# A base for the image, of Debian's packages, where no container registry is reached: base.sh NAME
set -eu
name="$1"
engine=podman
if docker info >/dev/null 2>&1; then engine=docker; fi
for tool in debootstrap $engine; do
  command -v $tool >/dev/null || { echo "base.sh needs $tool: apt-get install $tool" >&2; exit 1; }
done
if $engine image inspect "$name" >/dev/null 2>&1; then exit 0; fi
root="$(mktemp -d)"
trap 'rm -rf "$root" "$root.log"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" >"$root.log" || {
  tail "$root.log" >&2; exit 1
}
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar --create --directory "$root" . | $engine import - "$name" >/dev/null
