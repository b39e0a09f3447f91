#!/usr/bin/env bash
# Starts Redis on the head: for the cache's states, in memory only. It listens on this machine and on the address that
# the workers reach it at, asks everybody for the password, and refuses what does not fit: the cache keeps its own budget.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # root may have none
command -v redis-server > /dev/null || { sudo apt-get update -q; sudo apt-get install -y -q redis-server; }
sudo systemctl disable --now redis-server > /dev/null 2>&1 || true # the distribution's own, without a password
folder=$HOME/.weir-redis
mkdir -p "$folder"
(
  umask 077
  cat > "$folder/redis.conf" << CONF
bind 127.0.0.1 $(echo "$SSH_CONNECTION" | cut -d' ' -f3)
port 6380
requirepass $(cat ~/.weir-secrets/redis_password)
dir $folder
pidfile $folder/pid
logfile $folder/log
save ""
appendonly no
daemonize yes
maxmemory 8gb
maxmemory-policy noeviction
CONF
)
if [ -s "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2> /dev/null; then
  echo "Redis is up"
else
  redis-server "$folder/redis.conf"
fi
