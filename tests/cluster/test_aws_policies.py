"""The policies of a cluster's nodes, held against every call that Ray's AWS provider and s3fs make."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from aws_account import BUCKET, REGION, Call, client, recorded
from moto.server import ThreadedMotoServer

from beamclip.cluster.aws.policies import Document, Scope, head_policy, worker_policy
from beamclip.places import Folder

SCOPE = Scope("aws", "123456789012", REGION, "beamclip", BUCKET, "beamclip-worker")
S3_ACTIONS = {
    "HeadBucket": ["s3:ListBucket"],
    "ListObjectsV2": ["s3:ListBucket"],
    "GetObject": ["s3:GetObject"],
    "HeadObject": ["s3:GetObject"],
    "CopyObject": ["s3:GetObject", "s3:PutObject"],
    "PutObject": ["s3:PutObject"],
    "CreateMultipartUpload": ["s3:PutObject"],
    "UploadPart": ["s3:PutObject"],
    "CompleteMultipartUpload": ["s3:PutObject"],
    "AbortMultipartUpload": ["s3:AbortMultipartUpload"],
    "DeleteObject": ["s3:DeleteObject"],
    "DeleteObjects": ["s3:DeleteObject"],
}
"""API calls of S3 whose permission has another name, or the same (Service Authorization Reference)."""

Need = tuple[str, str, dict[str, str]]
"""What AWS asks the policies about a call: action, resource, and the values of the condition keys."""


def allows(policy: Document, need: Need) -> bool:
    """Whether a policy that only allows, by StringEquals, allows this."""
    action, resource, values = need
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {"StringEquals": {}})
        assert set(conditions) == {"StringEquals"}
        if (
            action in listed(statement["Action"])
            and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
            and all(values.get(key) == wanted for key, wanted in conditions["StringEquals"].items())
        ):
            return True
    return False


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def actions(policy: Document) -> set[str]:
    return {action for statement in policy["Statement"] for action in listed(statement["Action"])}


def needs(call: Call, tags: dict[str, dict[str, str]]) -> Iterator[Need]:
    """Yield what AWS asks the policies about a call of EC2; `tags`: machine -> its tags."""
    if call.action == "ec2:RunInstances":
        yield from needs_to_start(call.parameters)
    elif call.action in ("ec2:CreateTags", "ec2:TerminateInstances"):
        for machine in call.parameters.get("Resources") or call.parameters["InstanceIds"]:
            values = {f"aws:ResourceTag/{name}": value for name, value in tags[machine].items()}
            yield call.action, arn("instance", machine), values
    else:
        yield call.action, "*", {"aws:RequestedRegion": REGION}


def needs_to_start(parameters: dict[str, Any]) -> Iterator[Need]:
    given = {
        f"aws:RequestTag/{tag['Key']}": tag["Value"]
        for spec in parameters["TagSpecifications"]
        for tag in spec["Tags"]
    }
    assert [spec["ResourceType"] for spec in parameters["TagSpecifications"]] == ["instance"]
    yield "ec2:RunInstances", arn("instance", "*"), given
    yield "ec2:CreateTags", arn("instance", "*"), {**given, "ec2:CreateAction": "RunInstances"}
    used = {
        "subnet": parameters["SubnetId"],
        "security-group": parameters["SecurityGroupIds"][0],
        "key-pair": parameters["KeyName"],
        "network-interface": "*",
        "volume": "*",
    }
    if "InstanceMarketOptions" in parameters:
        used["spot-instances-request"] = "*"
    for kind, name in used.items():
        yield "ec2:RunInstances", arn(kind, name), {}
    yield "ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/{parameters['ImageId']}", {}
    yield "ec2:RunInstances", f"arn:aws:ec2:{REGION}::snapshot/snap-1", {}
    profile = client("iam").get_instance_profile(
        InstanceProfileName=parameters["IamInstanceProfile"]["Name"]
    )["InstanceProfile"]
    yield "iam:PassRole", profile["Roles"][0]["Arn"], {"iam:PassedToService": "ec2.amazonaws.com"}


def arn(kind: str, name: str, region: str = REGION) -> str:
    return f"arn:aws:ec2:{region}:{SCOPE.account}:{kind}/{name}"


@pytest.fixture
def asked_of_ec2(access: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Need]:
    """What the head asks of EC2 by every method of Ray's AWS provider that its autoscaler calls."""
    from ray.autoscaler._private.aws import config, node_provider, utils
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
    with recorded() as calls:
        for cached in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
            cached.cache_clear()
        # On the machine of the user; the head gets the result.
        cluster = config.bootstrap_aws(prepare_config(yaml.safe_load(Path("cluster.yaml").read_text())))
        calls.clear()
        provider = node_provider.AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
        for kind in ("gpu", "cpu"):
            start_and_end(provider, cluster["available_node_types"][kind]["node_config"], kind)
        utils.resource_cache.cache_clear()
    tags = tags_of_machines()
    return [need for call in calls for need in needs(call, tags)]


def start_and_end(provider: Any, node_config: dict[str, Any], kind: str) -> None:
    tags = {
        "ray-node-name": f"ray-beamclip-{kind}",
        "ray-node-type": "worker",
        "ray-node-status": "uninitialized",
        "ray-launch-config": "hash",
        "ray-user-node-type": kind,
    }
    first, second = (
        machine
        for _ in range(2)
        for machine in provider.create_node_with_resources_and_labels(
            node_config, {**tags}, 1, {"CPU": 1}, {}
        )
    )
    assert set(provider.non_terminated_nodes({"ray-node-type": "worker"})) == {first, second}
    assert provider.is_running(first)
    assert provider.internal_ip(first)
    assert provider.external_ip(first)
    provider.set_node_tags(first, {"ray-node-status": "up-to-date", "ray-node-name": "renamed"})
    assert provider.node_tags(first)["ray-node-status"] == "up-to-date"
    provider.terminate_nodes([first])
    provider.terminate_node(second)
    provider.non_terminated_nodes({})
    assert provider.is_terminated(first)


def tags_of_machines() -> dict[str, dict[str, str]]:
    return {
        machine["InstanceId"]: {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
        for reservation in client("ec2").describe_instances()["Reservations"]
        for machine in reservation["Instances"]
    }


def test_the_head_may_do_all_that_rays_provider_asks_of_ec2(asked_of_ec2: list[Need]):
    assert [need for need in asked_of_ec2 if not allows(head_policy(SCOPE), need)] == []


def test_the_head_may_do_nothing_on_ec2_that_rays_provider_does_not_ask(asked_of_ec2: list[Need]):
    storage = worker_policy(SCOPE)["Statement"]
    parts = [
        {**statement, "Action": action, "Resource": resource}
        for statement in head_policy(SCOPE)["Statement"]
        if statement not in storage
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    ]
    unused = [part for part in parts if not any(allows({"Statement": [part]}, need) for need in asked_of_ec2)]
    assert unused == []


OWN, OTHER = ({"aws:ResourceTag/ray-cluster-name": name} for name in ("beamclip", "another"))
TO_EC2 = {"iam:PassedToService": "ec2.amazonaws.com"}


@pytest.mark.parametrize(
    "need",
    [
        ("ec2:TerminateInstances", arn("instance", "i-1"), OTHER),
        ("ec2:TerminateInstances", arn("instance", "i-1"), {}),
        ("ec2:TerminateInstances", arn("instance", "i-1", "eu-west-1"), OWN),
        ("ec2:CreateTags", arn("instance", "i-1"), OTHER),
        ("ec2:CreateTags", arn("volume", "vol-1"), OWN),
        ("ec2:RunInstances", arn("instance", "*"), {}),
        ("ec2:RunInstances", arn("instance", "*"), {"aws:RequestTag/ray-cluster-name": "another"}),
        ("ec2:RunInstances", arn("subnet", "subnet-1", "eu-west-1"), {}),
        ("ec2:DescribeInstances", "*", {"aws:RequestedRegion": "eu-west-1"}),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/admin", TO_EC2),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/beamclip-head", TO_EC2),
        ("s3:GetObject", "arn:aws:s3:::fish/a", {}),
        ("s3:ListBucket", "arn:aws:s3:::birds-of-others", {}),
    ],
)
def test_the_head_may_not_touch_what_is_not_of_its_cluster(need: Need):
    assert not allows(head_policy(SCOPE), need)


@pytest.fixture
def s3_calls(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """What s3fs asks of S3 for all that this project does with a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
    calls: list[Call] = []
    folder = Folder(f"s3://{BUCKET}/run")
    folder.fs.connect()
    events = folder.fs._s3.meta.events
    events.register(
        "before-parameter-build",
        lambda params, model, **_: calls.append(Call(model.name, dict(params))),
        unique_id="recorder",
    )
    use_bucket(folder)
    events.unregister("before-parameter-build", unique_id="recorder")
    yield calls
    type(folder.fs).clear_instance_cache()
    server.stop()


def use_bucket(folder: Folder) -> None:
    folder.prepare("--out")
    folder.write("small", b"1")
    assert folder.read("small") == b"1"
    large, gone = folder.path("large"), folder.path("gone")
    with folder.fs.open(large, "wb", block_size=5 << 20) as file:
        file.write(bytes(11 << 20))
    folder.fs.cat_file(large, start=1, end=2)
    assert not folder.fs.exists(gone)
    folder.fs.copy(large, gone)
    upload = folder.fs.open(gone, "wb", block_size=5 << 20)
    upload.write(bytes(11 << 20))
    upload.discard()
    upload.closed = True
    assert {"small", "large"} <= folder.names()
    folder.remove("small")
    folder.fs.rm(folder.path(""), recursive=True)


def test_nodes_may_do_in_their_bucket_what_s3fs_asks_and_nothing_else(s3_calls: list[Call]):
    asked = {
        (action, f"arn:aws:s3:::{BUCKET}" + ("" if action == "s3:ListBucket" else "/run/x"))
        for call in s3_calls
        for action in S3_ACTIONS[call.action]
    }
    assert {call.parameters["Bucket"] for call in s3_calls} == {BUCKET}
    for policy in (worker_policy(SCOPE), head_policy(SCOPE)):
        assert [need for need in asked if not allows(policy, (*need, {}))] == []
    assert actions(worker_policy(SCOPE)) == {action for action, _ in asked}
