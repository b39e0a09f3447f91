#!/usr/bin/env bash
# Prepares a node that has only an NVIDIA driver and Python: it creates a virtual environment with the locked versions. uv
# installs the Python interpreter, so that all nodes have the same one. The script can be run again.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
checkout=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m pip --version > /dev/null 2>&1 || sudo apt-get install -y -q python3-pip
command -v uv > /dev/null || [ -x ~/.local/bin/uv ] || python3 -m pip install -q --user uv 2> /dev/null ||
  python3 -m pip install -q --user --break-system-packages uv
export PATH="$HOME/.local/bin:$PATH"
[ -x ~/weir-venv/bin/python ] || uv venv --python 3.11 ~/weir-venv
uv pip install -q --python ~/weir-venv/bin/python --require-hashes --no-deps -r "$checkout/requirements.lock"
uv pip install -q --python ~/weir-venv/bin/python "$(grep ^torch== "$checkout/requirements.txt")"
uv pip install -q --python ~/weir-venv/bin/python --no-deps -e "$checkout"
