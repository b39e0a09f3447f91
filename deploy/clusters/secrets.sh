#!/usr/bin/env bash
# Creates the secrets of a cluster on the machine where `ray up` is run: Ray's token, the password of Redis and the secret
# of the cache's tags. Existing secrets are kept. `ray up` copies the folder to every node; only its owner can read it.
set -euo pipefail
folder=${1:-$HOME/.weir-secrets}
umask 077
mkdir -p "$folder"
for name in ray_token redis_password cache_secret; do
  [ -s "$folder/$name" ] || python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$folder/$name"
done
echo "secrets in $folder; for commands on this machine: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/ray_token"
