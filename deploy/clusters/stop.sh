#!/usr/bin/env bash
# Stops on the head what `ray up` started there: Ray, Redis, Prometheus and Grafana. On hosts of your own `ray down` does
# not stop them. Ray on the workers ends within a minute after Ray on the head.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
. ~/weir/deploy/clusters/env.sh
ray stop
for file in ~/.weir-redis/pid ~/.weir-prometheus/pid; do
  if [ -s "$file" ]; then kill "$(cat "$file")" 2> /dev/null || true; fi
done
sudo docker stop weir-grafana > /dev/null 2>&1 || true
