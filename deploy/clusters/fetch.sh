#!/usr/bin/env bash
# Fetches a family's weights into the node's cache folder (HF_HOME), with progress: fetch.sh FAMILY.yaml
set -euo pipefail
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
exec ~/weir-venv/bin/weir fetch "$1"
