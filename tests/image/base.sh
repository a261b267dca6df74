#!/bin/sh
# A base for the image, of Debian's packages, where no container registry is reached: base.sh NAME
set -eu
name="$1"
for tool in debootstrap podman; do
  command -v $tool >/dev/null || { echo "base.sh needs $tool: apt-get install debootstrap podman" >&2; exit 1; }
done
if podman image exists "$name"; then exit 0; fi
root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$root" >"$root.log" || {
  tail "$root.log" >&2; exit 1
}
rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar --create --directory "$root" . | podman import --quiet - "$name" >/dev/null
