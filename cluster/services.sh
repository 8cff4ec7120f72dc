#!/usr/bin/env bash
# Start what runs beside Ray on a node, in place of what ran before, or end it: services.sh head | worker | stop
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

# A process of an id that was written down before the machine started anew is another one.
stop() {
    local name=$1 module=$2 pid
    pid=$(cat "$folder/$name.pid" 2>/dev/null || true)
    if [ -n "$pid" ] && grep -qs "$module" "/proc/$pid/cmdline"; then
        kill -TERM -- "-$pid" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    fi
    rm -f "$folder/$name.pid"
}

# With what the node has now: its storage or the code may have changed.
start() {
    local name=$1 module=$2
    shift 2
    stop "$name" "$module"
    setsid nohup python -m "$module" "$@" >> "$folder/$name.log" 2>&1 < /dev/null &
    echo $! > "$folder/$name.pid"
}

case $role in
    head)
        # Ray's own copy of cluster.yaml, as JSON.
        sed -n 's/.*"cluster_name": "\([^"]*\)".*/\1/p' ~/ray_bootstrap_config.yaml 2>/dev/null | head -1 \
            > ~/.beamclip-cluster || true
        . ~/.beamclip
        start mlflow beamclip.cluster.mlflow_server
        ;;
    worker)
        start spot beamclip.cluster.spot --address "${RAY_HEAD_IP:?}:6379"
        ;;
    stop)
        stop mlflow beamclip.cluster.mlflow_server
        stop spot beamclip.cluster.spot
        ;;
    *)
        echo "$role: give head, worker or stop" >&2
        exit 2
        ;;
esac
