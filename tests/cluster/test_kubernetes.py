"""cluster/kubernetes.yaml and its job, as far as they can be known to be right without a cluster."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from beamclip.commands.command_line import parse
from beamclip.commands.main import COMMANDS

ROOT = Path(__file__).parents[2]
FILES = ("kubernetes.yaml", "kubernetes-job.yaml")

# Fields of Kubernetes and of KubeRay 1.5.1 to 1.7 that stand here or are likely to.
# None: anything may be below.
METADATA = {"name": None, "namespace": None, "labels": None, "annotations": None}
EXPRESSION = {"key": None, "operator": None, "values": None}
TERMS = {"nodeSelectorTerms": {"matchExpressions": EXPRESSION, "matchFields": EXPRESSION}}
SECURITY = {"runAsNonRoot": None, "runAsUser": None, "runAsGroup": None, "fsGroup": None}
REFERENCE = {"name": None, "optional": None}
KEY_REFERENCE = {"name": None, "key": None, "optional": None}
VOLUME = {
    "name": None,
    "configMap": {"name": None, "optional": None, "items": None, "defaultMode": None},
    "secret": {"secretName": None, "optional": None, "items": None, "defaultMode": None},
    "persistentVolumeClaim": {"claimName": None, "readOnly": None},
    "emptyDir": {"medium": None, "sizeLimit": None},
}
CONTAINER = {
    "name": None,
    "image": None,
    "imagePullPolicy": None,
    "command": None,
    "args": None,
    "workingDir": None,
    "restartPolicy": None,
    "env": {
        "name": None,
        "value": None,
        "valueFrom": {"secretKeyRef": KEY_REFERENCE, "configMapKeyRef": KEY_REFERENCE},
    },
    "envFrom": {"configMapRef": REFERENCE, "secretRef": REFERENCE, "prefix": None},
    "ports": {"name": None, "containerPort": None, "protocol": None},
    "resources": {"requests": None, "limits": None},
    "lifecycle": {"preStop": {"exec": {"command": None}}, "postStart": {"exec": {"command": None}}},
    "volumeMounts": {"name": None, "mountPath": None, "subPath": None, "readOnly": None},
}
POD = {
    "serviceAccountName": None,
    "automountServiceAccountToken": None,
    "securityContext": SECURITY,
    "terminationGracePeriodSeconds": None,
    "nodeSelector": None,
    "imagePullSecrets": {"name": None},
    "tolerations": {"key": None, "operator": None, "value": None, "effect": None, "tolerationSeconds": None},
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": TERMS}},
    "initContainers": CONTAINER,
    "containers": CONTAINER,
    "volumes": VOLUME,
}
GROUP = {"rayStartParams": None, "template": {"metadata": METADATA, "spec": POD}}
CLUSTER = {
    "rayVersion": None,
    "suspend": None,
    "authOptions": {"mode": None},
    "enableInTreeAutoscaling": None,
    "autoscalerOptions": {
        "version": None,
        "upscalingMode": None,
        "idleTimeoutSeconds": None,
        "image": None,
        "imagePullPolicy": None,
        "resources": {"requests": None, "limits": None},
        "env": None,
        "envFrom": None,
    },
    "headServiceAnnotations": None,
    "headGroupSpec": {**GROUP, "serviceType": None, "enableIngress": None, "headService": None},
    "workerGroupSpecs": {
        **GROUP,
        "groupName": None,
        "replicas": None,
        "minReplicas": None,
        "maxReplicas": None,
        "idleTimeoutSeconds": None,
        "numOfHosts": None,
    },
}
JOB = {
    "entrypoint": None,
    "clusterSelector": None,
    "submissionMode": None,
    "submitterPodTemplate": {"metadata": METADATA, "spec": POD},
    "metadata": None,
    "runtimeEnvYAML": None,
    "entrypointNumCpus": None,
    "entrypointNumGpus": None,
    "activeDeadlineSeconds": None,
}
KINDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v1", "ConfigMap"): {"data": None},
    ("v1", "ServiceAccount"): {"imagePullSecrets": {"name": None}},
    ("ray.io/v1", "RayCluster"): {"spec": CLUSTER},
    ("ray.io/v1", "RayJob"): {"spec": JOB},
}

# CPUs, GiB of memory and GPUs of the machines that the comments name.
MACHINES = {"head": (8, 32, 0), "gpu": (48, 192, 4), "cpu": (32, 128, 0)}


def documents(file: str) -> list[dict[str, Any]]:
    loaded = list(yaml.safe_load_all((ROOT / "cluster" / file).read_text()))
    # Anchors make shared objects; a test that changes one place must not change another.
    parsed: list[dict[str, Any]] = json.loads(json.dumps(loaded))
    return parsed


@pytest.fixture
def parts() -> dict[str, dict[str, Any]]:
    """All documents of both files, by their kind."""
    return {document["kind"]: document for file in FILES for document in documents(file)}


@pytest.fixture
def cluster(parts) -> dict[str, Any]:
    spec: dict[str, Any] = parts["RayCluster"]["spec"]
    return spec


def unknown_keys(value: Any, known: dict[str, Any] | None) -> list[str]:
    """Keys of nested mappings and lists that `known` does not name."""
    if known is None:
        return []
    if isinstance(value, list):
        return [key for item in value for key in unknown_keys(item, known)]
    if not isinstance(value, dict):
        return [f"{value!r} in place of {', '.join(known)}"]
    found = [key for key in value if key not in known]
    return found + [key for name in known if name in value for key in unknown_keys(value[name], known[name])]


def misspelt(document: dict[str, Any]) -> list[str]:
    fields = KINDS[document["apiVersion"], document["kind"]]
    top = {"apiVersion": None, "kind": None, "metadata": {**METADATA, "generateName": None}}
    return unknown_keys(document, {**top, **fields})


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pods of the head and of each group of workers, by name."""
    groups = {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }
    return {name: group["template"]["spec"] for name, group in groups.items()}


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number: CPUs, GPUs, or GiB."""
    if quantity.endswith("m"):
        return int(quantity[:-1]) / 1000
    return float(quantity.removesuffix("Gi"))


def test_no_field_is_misspelt(parts):
    assert {kind: misspelt(document) for kind, document in parts.items()} == {kind: [] for kind in parts}


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (lambda c: rename(c, "enableInTreeAutoscaling", "enableInTreeAutoscaler"), "enableInTreeAutoscaler"),
        (lambda c: rename(c["authOptions"], "mode", "modes"), "modes"),
        (lambda c: rename(c["autoscalerOptions"], "idleTimeoutSeconds", "idleTimeout"), "idleTimeout"),
        (lambda c: rename(c["workerGroupSpecs"][0], "maxReplicas", "maxReplica"), "maxReplica"),
        (lambda c: rename(c["headGroupSpec"], "rayStartParams", "rayStartParam"), "rayStartParam"),
        (lambda c: rename(pods(c)["gpu"], "tolerations", "toleration"), "toleration"),
        (lambda c: rename(pods(c)["cpu"]["containers"][0], "envFrom", "envfrom"), "envfrom"),
        (lambda c: rename(pods(c)["gpu"]["containers"][0]["lifecycle"], "preStop", "prestop"), "prestop"),
        (lambda c: rename(pods(c)["head"]["containers"][0]["resources"], "limits", "limit"), "limit"),
        (lambda c: rename(pods(c)["head"]["volumes"][0]["configMap"], "optional", "opt"), "opt"),
    ],
)
def test_a_misspelt_field_is_found(parts, cluster, spoil: Callable[[dict[str, Any]], None], key: str):
    spoil(cluster)
    assert misspelt(parts["RayCluster"]) == [key]


def test_a_value_in_place_of_a_mapping_is_found(parts, cluster):
    pods(cluster)["gpu"]["securityContext"] = 1000
    assert misspelt(parts["RayCluster"]) == [
        "1000 in place of runAsNonRoot, runAsUser, runAsGroup, fsGroup",
    ]


def test_the_version_of_ray_is_the_tested_one(cluster):
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert cluster["rayVersion"] == pinned[1]


def test_one_image_runs_everywhere(cluster):
    assert len({container["image"] for pod in pods(cluster).values() for container in containers(pod)}) == 1
    # KubeRay submits a job and scales the cluster with the head's image, if no other is named.
    assert "image" not in cluster["autoscalerOptions"]


def test_every_line_to_edit_is_marked_and_the_image_and_the_storage_stand_once():
    text = (ROOT / "cluster/kubernetes.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    marked = [line for line in lines if line.endswith("# EDIT")]
    for example in ("registry.example.com", "s3://bucket", "000000000000"):
        (line,) = [line for line in lines if example in line]
        assert line in marked
    assert sum("maxReplicas" in line for line in marked) == 2
    assert sum("cpu: " in line and "memory: " in line for line in marked) == 3


def test_all_containers_know_the_storage_and_may_reach_it(parts, cluster):
    assert {"BEAMCLIP_STORAGE", "BEAMCLIP_CLUSTER"} <= set(parts["ConfigMap"]["data"])
    account = parts["ServiceAccount"]["metadata"]["name"]
    for pod in pods(cluster).values():
        assert pod["serviceAccountName"] == account
        for container in containers(pod):
            assert container["envFrom"] == [
                {"configMapRef": {"name": parts["ConfigMap"]["metadata"]["name"]}}
            ]


def test_nobody_reaches_ray_without_the_token(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    # KubeRay sets these for its own token, and RAY_ADDRESS to the head; others would take their place.
    for pod in pods(cluster).values():
        named = {item["name"] for container in containers(pod) for item in container.get("env", [])}
        assert not named & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"}


def test_only_the_head_has_the_address_of_mlflow_which_its_sidecar_serves(cluster):
    addresses = {
        name: [item["value"] for item in pod["containers"][0].get("env", []) if "MLFLOW" in item["name"]]
        for name, pod in pods(cluster).items()
    }
    assert addresses == {"head": ["http://127.0.0.1:5000"], "gpu": [], "cpu": []}
    (sidecar,) = pods(cluster)["head"]["initContainers"]
    assert sidecar["command"][-1] == "beamclip.cluster.mlflow_server"
    # Otherwise the head would wait for its end.
    assert sidecar["restartPolicy"] == "Always"


@pytest.mark.parametrize("name", list(MACHINES))
def test_what_a_pod_asks_for_fits_its_machine_and_is_what_ray_counts(cluster, name: str):
    pod = pods(cluster)[name]
    asked = [container["resources"] for container in containers(pod)]
    assert all(resources["requests"] == resources["limits"] for resources in asked)
    # On the head also the container of the autoscaler, which KubeRay adds with half a CPU and half a GiB.
    added = 0.5 if name == "head" else 0.0
    cpus, memory, gpus = MACHINES[name]
    assert cpus * 0.8 < sum(amount(each["limits"]["cpu"]) for each in asked) + added <= cpus * 0.95
    assert memory * 0.8 < sum(amount(each["limits"]["memory"]) for each in asked) + added <= memory * 0.9
    assert sum(amount(each["limits"].get("nvidia.com/gpu", "0")) for each in asked) == gpus


def test_the_head_takes_no_tasks_and_is_on_no_spot_node(cluster):
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    affinity = pods(cluster)["head"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}


def test_groups_of_workers_start_when_they_are_needed(cluster):
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        # The autoscaler decides; a number here would start machines at each apply.
        assert "replicas" not in group


def test_a_worker_that_must_go_leaves_the_cluster_within_its_time(cluster):
    for name in ("gpu", "cpu"):
        pod = pods(cluster)[name]
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        ends_in, sleep = map(int, re.findall(r"--ends-in (\d+); sleep (\d+)", script)[0])
        assert sleep < ends_in < pod["terminationGracePeriodSeconds"]


def test_the_job_runs_on_this_cluster_with_options_that_exist(parts):
    spec = parts["RayJob"]["spec"]
    assert spec["clusterSelector"] == {"ray.io/cluster": parts["RayCluster"]["metadata"]["name"]}
    program, command, *options = spec["entrypoint"].split()
    assert (program, command) == ("beamclip", "distill")
    config = parse(COMMANDS[command].options, options, "")
    assert config.workers.use_gpu
    # The workers that one group of the cluster has GPUs for.
    group = pods(parts["RayCluster"]["spec"])["gpu"]["containers"][0]["resources"]["limits"]
    machines = parts["RayCluster"]["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert config.workers.most_workers <= machines * int(group["nvidia.com/gpu"])


def test_class_lists_are_where_the_job_expects_them(parts, cluster):
    (mount,) = pods(cluster)["head"]["containers"][0]["volumeMounts"]
    assert f"--classes {mount['mountPath']}/classes.yaml" in parts["RayJob"]["spec"]["entrypoint"]
    (volume,) = pods(cluster)["head"]["volumes"]
    assert mount["name"] == volume["name"]
    # Without class lists the head must start all the same.
    assert volume["configMap"]["optional"] is True


@pytest.mark.parametrize("file", FILES)
def test_the_commands_of_the_comments_parse(file: str):
    lines = (ROOT / "cluster" / file).read_text().splitlines()
    shown = [line.removeprefix("#   ") for line in lines if line.startswith("#   ")]
    assert len(shown) > 2
    done = subprocess.run(["bash", "-n"], input="\n".join(shown), capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
