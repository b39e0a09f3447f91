#!/usr/bin/env bash
# Fetches the weights of a family into the node's cache folder (HF_HOME) and shows progress. Usage: fetch.sh FAMILY.yaml
set -euo pipefail
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
exec ~/weir/.venv/bin/weir fetch "$1"
