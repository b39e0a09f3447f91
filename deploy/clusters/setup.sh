#!/usr/bin/env bash
# Prepares a node that has only an NVIDIA driver: it makes the virtual environment of the checkout, by the same steps as
# on any other machine. Run again, it installs only what has changed. All nodes need the same version of Python:
# PYTHON=python3.12 chooses one.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
checkout=$(cd "$(dirname "$0")/../.." && pwd)
if ! command -v make > /dev/null || ! "${PYTHON:-python3}" -c 'import ensurepip, venv' 2> /dev/null; then
  sudo apt-get update -q
  sudo apt-get install -y -q make python3-venv
fi
exec make --no-print-directory -C "$checkout" setup
