#!/usr/bin/env bash
# On the head, before `ray down`: save what the cluster knows, and end it on machines that outlive it.
#
# `ray down` ends the machines of a cloud. Of machines of one's own it ends Ray on the head alone: on the others
# Ray would look for the head for a while, and what runs beside Ray would go on.
set -uo pipefail
. ~/.beamclip

python -m beamclip.cluster.mlflow_server save || {
    echo "the MLflow database is not saved, and nothing was ended" >&2
    exit 1
}
end_here='bash ~/beamclip/cluster/services.sh stop; ray stop --grace-period 10'
# The user and the address of each worker, if these are machines of one's own.
workers=$(python -c '
import json, pathlib
cluster = json.loads((pathlib.Path.home() / "ray_bootstrap_config.yaml").read_text())
if cluster["provider"]["type"] == "local":
    for address in cluster["provider"].get("worker_ips", []):
        print(cluster["auth"]["ssh_user"] + "@" + address)
')
# The head first: as long as it is up, it starts Ray again on workers that have lost it.
eval "$end_here"
for worker in $workers; do
    ssh -n -q -i ~/ray_bootstrap_key.pem -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o ConnectTimeout=10 "$worker" "$end_here" || echo "$worker: not reached; Ray may run on there" >&2 &
done
wait
