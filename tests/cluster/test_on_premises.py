"""cluster/on-premises.yaml: Ray takes it, and it agrees with cluster.yaml where both say the same."""

import copy
import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


@pytest.fixture
def cluster() -> dict[str, Any]:
    return read("cluster/on-premises.yaml")


def test_the_file_fits_the_schema_of_the_installed_ray(cluster: dict[str, Any]) -> None:
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
    assert list(jsonschema.Draft7Validator(schema).iter_errors(cluster)) == []


def test_ray_prepares_it_with_every_machine_as_a_worker(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2


def test_what_a_user_edits_is_marked() -> None:
    lines = (ROOT / "cluster/on-premises.yaml").read_text().splitlines()
    marked = [line.split("#")[0].strip().split(":")[0] for line in lines if line.endswith("# EDIT")]
    assert marked == [
        "head_ip",
        "worker_ips",
        "ssh_user",
        "ssh_private_key",
        "- bash ~/beamclip/cluster/setup.sh /shared/beamclip",
    ]


@pytest.mark.parametrize("part", ["file_mounts", "rsync_exclude"])
def test_nodes_get_what_those_on_aws_get(cluster: dict[str, Any], part: str) -> None:
    assert cluster[part] == read("cluster.yaml")[part]


@pytest.mark.parametrize("key", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_the_settings_of_those_on_aws(cluster: dict[str, Any], key: str) -> None:
    def settings(of: dict[str, Any]) -> set[str]:
        start = next(line for line in of[key] if "ray start" in line)
        return set(re.findall(r"\bRAY_[A-Za-z_]+=\S+", start))

    assert settings(cluster) == settings(read("cluster.yaml"))


def test_every_shell_command_parses(cluster: dict[str, Any]) -> None:
    for line in (line for key in cluster if key.endswith("_commands") for line in cluster[key]):
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
        assert (done.stderr, done.returncode) == ("", 0), line
