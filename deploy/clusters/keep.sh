#!/usr/bin/env bash
# Starts Ray on the head, and again whenever one of its processes was killed or has crashed. It finds its state in files,
# and the other hosts and their replicas wait for it (env.sh).
#   keep.sh ray start …    starts it instead of what runs here, and returns when Ray runs
#   keep.sh stop           stops it
set -euo pipefail
folder=$HOME/.weir-ray
mkdir -p -m 700 "$folder"
if [ -s "$folder/pid" ]; then
  kill -- "-$(cat "$folder/pid")" 2> /dev/null || true
  rm "$folder/pid"
fi
ray stop
[ "$1" != stop ] || exit 0
: > "$folder/log"
# sh, because a bash below sshd reads ~/.bashrc, which may set another PATH.
# A start that failed leaves processes, which keep the next one from the files of the state.
setsid sh -c 'until "$@" --block; do ray stop --force; sleep 2; done' keep "$@" >> "$folder/log" 2>&1 < /dev/null &
pid=$!
echo "$pid" > "$folder/pid"
for _ in $(seq 240); do
  if grep -q "Ray runtime started" "$folder/log"; then
    echo "Ray runs, and is started again when it crashes; its output is in $folder/log"
    exit 0
  fi
  kill -0 "$pid" 2> /dev/null || break
  sleep 0.5
done
tail -n 20 "$folder/log" >&2
echo "error: Ray did not start within two minutes; $folder/log says why" >&2
exit 1
