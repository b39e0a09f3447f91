#!/usr/bin/env bash
# Makes the secrets of a cluster, once, on the machine that `ray up` runs on: Ray's token, Redis's password and the
# secret of the cache's tags. `ray up` copies the folder to every node; nobody else can read it.
set -euo pipefail
folder=${1:-$HOME/.weir-secrets}
umask 077
mkdir -p "$folder"
for name in ray_token redis_password cache_secret; do
  [ -s "$folder/$name" ] || python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/$name"
done
echo "secrets in $folder; for commands on this machine: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/ray_token"
