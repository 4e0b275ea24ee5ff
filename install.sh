#!/bin/sh
# Installs teleport-event-indexer from a release: fetches the archive for this machine, checks it
# against the release's SHA256SUMS, and puts the program into a folder.
#
#     RELEASES=https://github.com/OWNER/REPOSITORY/releases sh install.sh
#
# environment:
#   RELEASES     where the releases lie (needed), as above; or a file:// folder with the same files
#   VERSION      a tag such as v0.1.0; else the latest
#   INSTALL_DIR  where to put it; else /usr/local/bin
set -eu

fail() {
  echo "install: $1" >&2
  exit 1
}

has() { command -v "$1" > /dev/null 2>&1; }

fetch() { # URL FILE
  curl --proto '=https,file' --proto-redir '=https' --silent --show-error --fail --location \
    --retry 3 --output "$2" "$1" || fail "cannot fetch $1"
}

sha256() { # FILE
  if has sha256sum; then
    sha256sum "$1" | cut -d ' ' -f 1
  elif has shasum; then
    shasum -a 256 "$1" | cut -d ' ' -f 1
  else
    fail "neither sha256sum nor shasum is here to check what was fetched"
  fi
}

target() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64 | Linux-amd64) echo x86_64-unknown-linux-musl ;;
    Linux-aarch64 | Linux-arm64) echo aarch64-unknown-linux-musl ;;
    Darwin-x86_64) echo x86_64-apple-darwin ;;
    Darwin-arm64) echo aarch64-apple-darwin ;;
    *) fail "no build for $(uname -s) on $(uname -m); build it with cargo" ;;
  esac
}

# All in a function, so that a script that arrives only in part does nothing.
main() {
  releases=${RELEASES:?set it to where the releases lie, https://github.com/OWNER/REPOSITORY/releases}
  folder=${INSTALL_DIR:-/usr/local/bin}
  has curl || fail "curl is needed"
  target=$(target)
  archive="teleport-event-indexer-$target.tar.gz"
  case $releases in
    file://*) base=$releases ;;
    *) base=$releases/latest/download ;;
  esac
  [ -z "${VERSION:-}" ] || base=$releases/download/$VERSION

  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 1' HUP INT TERM
  fetch "$base/SHA256SUMS" "$scratch/SHA256SUMS"
  fetch "$base/$archive" "$scratch/$archive"
  wanted=$(awk -v name="$archive" '$2 == name || $2 == "*" name { print $1 }' "$scratch/SHA256SUMS")
  [ -n "$wanted" ] || fail "SHA256SUMS does not name $archive"
  found=$(sha256 "$scratch/$archive")
  [ "$wanted" = "$found" ] || fail "$archive has the checksum $found, and SHA256SUMS says $wanted; nothing was installed"

  tar -xzf "$scratch/$archive" -C "$scratch" teleport-event-indexer
  # Beside its place first, then over it in one step: a running program keeps its file.
  new=$folder/.teleport-event-indexer.new
  if ! { mkdir -p "$folder" && cp "$scratch/teleport-event-indexer" "$new"; }; then
    fail "cannot write to $folder: choose another INSTALL_DIR, or run this as root"
  fi
  chmod 0755 "$new"
  mv "$new" "$folder/teleport-event-indexer"
  echo "install: $("$folder/teleport-event-indexer" version) lies in $folder" >&2
}

main
