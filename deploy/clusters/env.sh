# What every Ray process of a node has in its environment; replicas inherit it. Sourced, in sh, before `ray start`.
export PATH="$HOME/weir-venv/bin:$HOME/.local/bin:$PATH"
export PYTHONPATH="$HOME/weir"
export HF_HOME="${HF_HOME:-$HOME/.cache/huggingface}"
export RAY_USAGE_STATS_ENABLED=0
# Who has failed three health checks is beyond finishing what it has begun.
export RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS=1
# With an arena for every thread, as glibc has it, processes of many threads grow for long.
export MALLOC_ARENA_MAX=2
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$HOME/.weir-secrets/ray_token"
# The address at which this node was reached: right on hosts with several, too.
NODE_IP=$(echo "$SSH_CONNECTION" | cut -d' ' -f3)
WEIR_CACHE_URL="redis://:$(cat "$HOME/.weir-secrets/redis_password")@${RAY_HEAD_IP:-$NODE_IP}:6380/0"
WEIR_CACHE_SECRET=$(cat "$HOME/.weir-secrets/cache_secret")
export NODE_IP WEIR_CACHE_URL WEIR_CACHE_SECRET
