#!/usr/bin/env bash
# Starts Prometheus with Weir's rules on the head and, if there is Docker, Grafana with Weir's dashboards. Both listen on
# the loopback interface only: forward their ports. The script can be run again.
set -euo pipefail
sudo() { if [ "$(id -u)" = 0 ]; then "$@"; else command sudo "$@"; fi; } # sudo may be missing where the user is root
here=$(cd "$(dirname "$0")/../monitoring" && pwd)
folder=$HOME/.weir-prometheus
mkdir -p "$folder"
command -v prometheus > /dev/null || { sudo apt-get update -q; sudo apt-get install -y -q --no-install-recommends prometheus; }
sudo systemctl disable --now prometheus > /dev/null 2>&1 || true # the distribution's service monitors only itself
if [ -s "$folder/pid" ] && kill -0 "$(cat "$folder/pid")" 2> /dev/null; then
  echo "Prometheus is up"
else
  nohup prometheus --config.file="$here/prometheus.yml" --storage.tsdb.path="$folder/data" \
    --storage.tsdb.retention.time=15d --web.listen-address=127.0.0.1:9090 > "$folder/log" 2>&1 < /dev/null &
  echo $! > "$folder/pid"
fi
# The cluster also starts without Grafana.
if ! sudo docker info > /dev/null 2>&1; then
  echo "no Docker here, so no Grafana; its dashboards are in $here/grafana"
elif [ -z "$(sudo docker ps --quiet --filter name=weir-grafana)" ]; then
  sudo docker run --detach --rm --name weir-grafana --network host \
    -e GF_SERVER_HTTP_ADDR=127.0.0.1 -e WEIR_PROMETHEUS_URL=http://127.0.0.1:9090 \
    -v "$here/grafana/provisioning:/etc/grafana/provisioning:ro" \
    -v "$here/grafana/dashboards:/var/lib/grafana/dashboards:ro" grafana/grafana:13.2.3 || echo "Grafana did not start"
fi
