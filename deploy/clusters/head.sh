#!/usr/bin/env bash
# Starts Redis on the head, for the states of the cache, in memory only. It listens on the loopback interface and on the
# address that the workers use, and requires the password. It refuses writes when it is full: the cache keeps its budget.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
command -v redis-server > /dev/null || { sudo apt-get update -q; sudo apt-get install -y -q redis-server; }
sudo systemctl disable --now redis-server > /dev/null 2>&1 || true # the distribution's service has no password
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
