#!/bin/sh
# Has the program write what packages bring along: target/man and target/completions.
#
# usage: packaging/assets.sh PROGRAM
set -eu
program=$1
mkdir -p target/man target/completions
"$program" man target/man
for shell in bash fish zsh powershell elvish; do
  "$program" completions "$shell" > "target/completions/teleport-event-indexer.$shell"
done
