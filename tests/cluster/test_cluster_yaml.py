"""cluster.yaml, as far as it can be known to be right without an AWS account."""

import copy
import json
import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from beamclip.cluster.aws.questions import IMAGE_PARAMETER

ROOT = Path(__file__).parents[2]

# What Ray reads of an AWS provider (the schema names those of every cloud and lets any other pass).
PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "key_pair",
    "security_group",
    "aws_credentials",
    "cloudwatch",
}

# Request parameters of EC2's RunInstances, and Ray's own SubnetIds; None: anything may be below.
NODE_CONFIG_KEYS: dict[str, Any] = {
    "InstanceType": None,
    "ImageId": None,
    "KeyName": None,
    "SubnetIds": None,
    "SecurityGroupIds": None,
    "UserData": None,
    "EbsOptimized": None,
    "TagSpecifications": None,
    "NetworkInterfaces": None,
    "MetadataOptions": {"HttpTokens": None, "HttpPutResponseHopLimit": None, "HttpEndpoint": None},
    "IamInstanceProfile": {"Arn": None, "Name": None},
    "Placement": {"AvailabilityZone": None, "GroupName": None, "Tenancy": None},
    "BlockDeviceMappings": {
        "DeviceName": None,
        "VirtualName": None,
        "NoDevice": None,
        "Ebs": {
            "VolumeSize": None,
            "VolumeType": None,
            "Iops": None,
            "Throughput": None,
            "Encrypted": None,
            "KmsKeyId": None,
            "SnapshotId": None,
            "DeleteOnTermination": None,
        },
    },
    "InstanceMarketOptions": {
        "MarketType": None,
        "SpotOptions": {
            "MaxPrice": None,
            "SpotInstanceType": None,
            "BlockDurationMinutes": None,
            "ValidUntil": None,
            "InstanceInterruptionBehavior": None,
        },
    },
}


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    # Anchors make shared objects; a test that changes one place must not change another.
    return json.loads(json.dumps(loaded))


def schema() -> dict[str, Any]:
    # Found without importing ray.autoscaler, whose import takes seconds.
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    parsed: dict[str, Any] = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    return parsed


def unknown_keys(value: Any, known: dict[str, Any] | None) -> list[str]:
    """Keys of nested mappings and lists that `known` does not name."""
    if known is None:
        return []
    if isinstance(value, list):
        return [key for item in value for key in unknown_keys(item, known)]
    found = [key for key in value if key not in known]
    return found + [key for name in known if name in value for key in unknown_keys(value[name], known[name])]


def misspelt(cluster: dict[str, Any]) -> list[str]:
    """Keys that Ray's own check lets pass and that nothing reads."""
    found = [key for key in cluster["provider"] if key not in PROVIDER_KEYS]
    for node_type in cluster["available_node_types"].values():
        found += unknown_keys(node_type["node_config"], NODE_CONFIG_KEYS)
    return found


def commands(cluster: dict[str, Any]) -> list[str]:
    return [line for key in cluster if key.endswith("_commands") for line in cluster[key]]


def test_the_file_fits_the_schema_of_the_installed_ray(cluster):
    assert list(jsonschema.Draft7Validator(schema()).iter_errors(cluster)) == []


def test_ray_prepares_and_accepts_the_file(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == set(cluster["available_node_types"])
    assert prepared["setup_commands"] == cluster["setup_commands"]


def rename(mapping: dict[str, Any], old: str, new: str) -> None:
    mapping[new] = mapping.pop(old)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: rename(c, "setup_commands", "setup_command"),
        lambda c: rename(c["available_node_types"]["gpu"], "max_workers", "max_worker"),
        lambda c: c.update(max_workers="12"),
        lambda c: c["available_node_types"]["gpu"]["resources"].update(GPU=0.5),
        lambda c: c.update(file_mounts=["beamclip"]),
    ],
)
def test_the_schema_refuses_a_slip(cluster, spoil: Callable[[dict[str, Any]], None]):
    spoil(cluster)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, schema())


def test_no_key_that_the_schema_lets_pass_is_misspelt(cluster):
    assert misspelt(cluster) == []


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (lambda c: rename(c["provider"], "region", "regoin"), "regoin"),
        (lambda c: rename(node(c, "gpu"), "InstanceType", "InstanceTyp"), "InstanceTyp"),
        (lambda c: rename(node(c, "cpu")["InstanceMarketOptions"], "MarketType", "Market"), "Market"),
        (lambda c: rename(node(c, "gpu")["MetadataOptions"], "HttpTokens", "HttpToken"), "HttpToken"),
        (lambda c: rename(node(c, "head")["BlockDeviceMappings"][0]["Ebs"], "VolumeSize", "Size"), "Size"),
    ],
)
def test_a_slip_that_the_schema_lets_pass_is_found(
    cluster, spoil: Callable[[dict[str, Any]], None], key: str
):
    spoil(cluster)
    jsonschema.validate(cluster, schema())
    assert misspelt(cluster) == [key]


def node(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    config: dict[str, Any] = cluster["available_node_types"][name]["node_config"]
    return config


def test_the_types_together_may_reach_the_limit_of_the_cluster(cluster):
    workers = [
        kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    ]
    assert sum(kind["max_workers"] for kind in workers) == cluster["max_workers"]


def test_every_mounted_part_of_the_checkout_exists(cluster):
    local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_nodes_have_every_program_and_what_sets_them_up(cluster):
    sent = set(cluster["file_mounts"])
    assert {"~/beamclip/pyproject.toml", "~/beamclip/constraints.txt", "~/beamclip/beamclip"} <= sent
    assert {"~/beamclip/pipelines", "~/beamclip/tune", "~/beamclip/cluster"} <= sent
    assert "bash ~/beamclip/cluster/setup.sh s3://YOUR-BUCKET/beamclip" in cluster["setup_commands"]


def test_ray_adds_no_command_of_its_own(cluster):
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(copy.deepcopy(cluster))
    for key in ("head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == cluster["setup_commands"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == cluster[key]


@pytest.mark.parametrize("way", ["make submit", "make fetch", "docs/cluster.md"])
def test_the_file_says_how_things_reach_the_nodes_and_come_back(way: str):
    comments = [line for line in (ROOT / "cluster.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(way in line for line in comments)


def test_every_shell_command_parses(cluster):
    for line in commands(cluster):
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        assert (done.stderr, done.returncode) == ("", 0), line


@pytest.mark.parametrize("role", ["head", "worker"])
def test_nodes_start_their_services_before_ray(cluster, role: str):
    lines = cluster[f"{role}_start_ray_commands"]
    assert lines[:2] == ["ray stop", f"bash ~/beamclip/cluster/services.sh {role}"]
    assert [number for number, line in enumerate(lines) if "ray start" in line] == [2]


def started_with(line: str, exported: dict[str, str]) -> dict[str, str]:
    """Run a start command whose `ray` prints its environment, and return that."""
    environment = {"PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.1", **exported}
    script = line.replace("ray start", "printenv #")
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return dict(pair.split("=", 1) for pair in done.stdout.splitlines())


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_the_shared_token_without_usage_statistics_and_as_no_clients_ray(cluster, key: str):
    line = next(line for line in cluster[key] if "ray start" in line)
    # `ray up` exports the first; every shell on a node has the second.
    seen = started_with(line, {"RAY_USAGE_STATS_ENABLED": "1", "RAY_ADDRESS": "auto"})
    assert seen["RAY_USAGE_STATS_ENABLED"] == "0"
    assert seen["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in seen
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_head_and_workers_have_profiles_and_workers_not_the_heads(cluster):
    profiles = {name: node(cluster, name)["IamInstanceProfile"]["Name"] for name in ("head", "gpu", "cpu")}
    assert profiles == {"head": "beamclip-head", "gpu": "beamclip-worker", "cpu": "beamclip-worker"}


@pytest.mark.parametrize("name", ["head", "gpu", "cpu"])
def test_disks_are_encrypted_and_go_with_their_machine_whose_role_takes_a_token(cluster, name: str):
    for disk in node(cluster, name)["BlockDeviceMappings"]:
        assert disk["Ebs"]["Encrypted"]
        assert disk["Ebs"]["DeleteOnTermination"]
    assert node(cluster, name)["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}


def test_stopped_machines_do_not_stay(cluster):
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_only_ssh_and_only_from_one_address_comes_in(cluster):
    assert cluster["provider"]["security_group"]["IpPermissions"] == [
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.1/32"}]}
    ]


def test_a_user_edits_three_lines():
    lines = [line for line in (ROOT / "cluster.yaml").read_text().splitlines() if line.endswith("# EDIT")]
    placeholders = ["203.0.113.1/32", "ami-00000000000000000", "YOUR-BUCKET"]
    assert [name in line for name, line in zip(placeholders, lines, strict=True)] == [True] * 3


def test_the_comment_names_the_parameter_by_which_the_check_finds_the_image():
    assert f"#     {IMAGE_PARAMETER}" in (ROOT / "cluster.yaml").read_text()
