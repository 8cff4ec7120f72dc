#!/usr/bin/env bash
# Start what runs beside Ray on a node, unless it runs already, or end it: services.sh head | worker | stop
#
#   mlflow   on the head: the MLflow server, at 127.0.0.1:5000 of the head alone
#   spot     on the workers: drains the node when the provider says that it will take the machine away
#
# Logs are in ~/.beamclip-services.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. ~/.beamclip

role=${1:?"head, worker or stop"}
folder=$HOME/.beamclip-services
mkdir -p "$folder"

start() {
    local name=$1
    shift
    if kill -0 "$(cat "$folder/$name.pid" 2>/dev/null)" 2>/dev/null; then
        return
    fi
    setsid nohup "$@" >> "$folder/$name.log" 2>&1 < /dev/null &
    echo $! > "$folder/$name.pid"
}

if [ "$role" = stop ]; then
    # Each of them leads a group of its own.
    for file in "$folder"/*.pid; do
        test ! -e "$file" || { kill -TERM -- "-$(cat "$file")" 2>/dev/null || true; rm -f "$file"; }
    done
elif [ "$role" = head ]; then
    # Ray's own copy of cluster.yaml, as JSON.
    sed -n 's/.*"cluster_name": "\([^"]*\)".*/\1/p' ~/ray_bootstrap_config.yaml 2>/dev/null | head -1 \
        > ~/.beamclip-cluster
    start mlflow python -m beamclip.cluster.mlflow_server
else
    start spot python -m beamclip.cluster.spot --address "${RAY_HEAD_IP:?}:6379"
fi
