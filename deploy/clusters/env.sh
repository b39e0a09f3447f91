# Environment of every Ray process of a node, which replicas inherit. It is sourced in sh before `ray start`.
export PATH="$HOME/weir/.venv/bin:$PATH"
export PYTHONPATH="$HOME/weir"
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
export RAY_USAGE_STATS_ENABLED=0
# A replica that failed three health checks will not finish its requests, so Ray Serve need not wait for them.
export RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS=1
# Clients do not reach Ray Serve's own paths and headers, and connections have limits.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=load_balancer.http.front_door.front_door
# Several load balancers are behind an HAProxy on every node, which waits for the slowest answer for up to an hour.
# Its folder has a short path, because Ray adds 57 characters, and that of a Unix socket may have 97.
eval "$(cd "$HOME/weir" && .venv/bin/python -m deploy.haproxy "/tmp/weir-$(id -u)" 3600)"
# Ray's GCS, of which the head has the only one, keeps its state in files: a head that starts again is the same cluster.
# The other hosts wait for it for an hour, and their replicas and load balancers work on.
export RAY_gcs_storage=rocksdb
export RAY_gcs_storage_path="$HOME/.weir-gcs"
export RAY_gcs_rpc_server_reconnect_timeout_s=3600
# By default glibc gives every thread a malloc arena of its own, and processes with many threads keep growing.
export MALLOC_ARENA_MAX=2
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.weir-secrets/ray_token"
# The address at which this node was reached, which is also correct on hosts with several addresses.
NODE_IP=$(echo "$SSH_CONNECTION" | cut -d' ' -f3)
WEIR_CACHE_URL="redis://:$(cat "$HOME/.weir-secrets/redis_password")@${RAY_HEAD_IP:-$NODE_IP}:6380/0"
WEIR_CACHE_SECRET=$(cat "$HOME/.weir-secrets/cache_secret")
export NODE_IP WEIR_CACHE_URL WEIR_CACHE_SECRET
