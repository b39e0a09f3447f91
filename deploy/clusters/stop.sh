#!/usr/bin/env bash
# Stops on the head what `ray up` started there: Ray, Redis, Prometheus, Grafana. `ray down` leaves hosts of one's own as
# they are. The workers' Ray ends by itself within a minute of the head's.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # root may have none
. ~/weir/deploy/clusters/env.sh
ray stop
for file in ~/.weir-redis/pid ~/.weir-prometheus/pid; do
  if [ -s "$file" ]; then kill "$(cat "$file")" 2> /dev/null || true; fi
done
sudo docker stop weir-grafana > /dev/null 2>&1 || true
