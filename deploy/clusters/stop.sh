#!/usr/bin/env bash
# Stops on the head what `ray up` started there: Ray, Redis, Prometheus and Grafana. On hosts of your own `ray down` does
# not stop them. Before that it ends Ray on the workers, which would wait for the head.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
. ~/weir/deploy/clusters/env.sh
nodes() { # alive, without the head
  ray list nodes --format json --address http://127.0.0.1:8265 2> /dev/null | python -c '
import json, sys
print(*(it["node_id"] for it in json.load(sys.stdin) if it["state"] == "ALIVE" and not it["is_head_node"]))' || true
}
for node in $(nodes); do
  ray drain-node --address "$NODE_IP:6379" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "the cluster is stopped" --deadline-remaining-seconds 1 || true
done
for _ in $(seq 30); do
  [ -n "$(nodes)" ] || break
  sleep 1
done
bash ~/weir/deploy/clusters/keep.sh stop
rm -rf "$RAY_gcs_storage_path" # the next cluster is a new one
for file in ~/.weir-redis/pid ~/.weir-prometheus/pid; do
  if [ -s "$file" ]; then kill "$(cat "$file")" 2> /dev/null || true; fi
done
sudo docker stop weir-grafana > /dev/null 2>&1 || true
