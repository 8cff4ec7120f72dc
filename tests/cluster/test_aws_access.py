"""`make aws-role`: roles, instance profiles and security group in an AWS account."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_account import ADDRESS, BUCKET, IMAGE, REGION, client, recorded

from beamclip.cluster.aws import __main__ as command
from beamclip.cluster.aws.policies import Document, Scope, head_policy, trust_policy, worker_policy
from beamclip.cluster.aws.roles import POLICY_NAME

Edit = Callable[[str, str], None]
HEAD, WORKER = "beamclip-head", "beamclip-worker"
SPOT = "AWSServiceRoleForspot"
"""As moto calls what AWS calls AWSServiceRoleForEC2Spot."""


@pytest.fixture
def role(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["aws", "role", "cluster.yaml", *arguments])
        code = command.main()
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


def scope(account: str, bucket: str = BUCKET) -> Scope:
    return Scope("aws", account, REGION, "beamclip", bucket, WORKER)


def policy(name: str) -> Document:
    found: Document = client("iam").get_role_policy(RoleName=name, PolicyName=POLICY_NAME)["PolicyDocument"]
    return found


def roles() -> set[str]:
    return {each["RoleName"] for each in client("iam").list_roles()["Roles"]}


def groups() -> list[dict[str, Any]]:
    named = [{"Name": "group-name", "Values": ["beamclip"]}]
    found: list[dict[str, Any]] = client("ec2").describe_security_groups(Filters=named)["SecurityGroups"]
    return found


def addresses(group: dict[str, Any], port: int = 22) -> list[str]:
    """Return from where a group lets in traffic to a port."""
    rules = [rule for rule in group["IpPermissions"] if rule.get("FromPort") == port]
    return [source["CidrIp"] for rule in rules for source in rule["IpRanges"]]


def test_head_and_workers_get_their_policies_through_profiles_of_the_names_in_the_file(account: str, role):
    code, lines, errors = role()
    assert (code, errors) == (0, [])
    assert [line.partition(":")[0] for line in lines[:2]] == [
        f"role and instance profile {name}" for name in (WORKER, HEAD)
    ]
    assert policy(HEAD) == head_policy(scope(account))
    assert policy(WORKER) == worker_policy(scope(account))
    for name in (HEAD, WORKER):
        profile = client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        assert [each["RoleName"] for each in profile["Roles"]] == [name]
        assert profile["Roles"][0]["AssumeRolePolicyDocument"] == trust_policy()
        assert client("iam").list_attached_role_policies(RoleName=name)["AttachedPolicies"] == []


def test_an_account_that_never_had_spot_machines_gets_ec2s_role_for_them(account: str, role):
    assert any("lets EC2 start spot machines" in line for line in role()[1])
    assert SPOT in roles()
    role("--delete")
    assert roles() == {SPOT}


def test_without_spot_machines_that_role_is_not_made(account: str, role, edit: Edit):
    edit("      InstanceMarketOptions: {MarketType: spot}\n", "")
    role()
    assert roles() == {HEAD, WORKER}


def test_the_group_lets_in_its_own_machines_and_ssh_from_the_address_in_the_file(account: str, role):
    role()
    (group,) = groups()
    assert addresses(group) == [ADDRESS]
    inside = next(rule for rule in group["IpPermissions"] if rule["IpProtocol"] == "-1")
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group["GroupId"]]
    assert len(group["IpPermissions"]) == 2


def test_a_second_time_changes_nothing(account: str, role):
    first, before = role(), groups()
    assert role() == (0, [line for line in first[1] if SPOT not in line], [])
    assert groups() == before
    assert policy(HEAD) == head_policy(scope(account))


def test_after_an_edit_bucket_and_address_are_the_new_ones(account: str, role, edit: Edit):
    role()
    edit(f"s3://{BUCKET}/", "s3://fish/")
    edit(ADDRESS, "2001:db8::/48")
    edit("IpRanges: [{CidrIp", "Ipv6Ranges: [{CidrIpv6")
    code, lines, _errors = role()
    assert code == 0
    assert policy(WORKER) == worker_policy(scope(account, "fish"))
    (group,) = groups()
    assert addresses(group) == []
    assert [s["CidrIpv6"] for rule in group["IpPermissions"] for s in rule["Ipv6Ranges"]] == ["2001:db8::/48"]
    assert any(f"no longer lets in tcp 22 from {ADDRESS}" in line for line in lines)


def test_deleted_all_is_gone_but_the_bucket_and_a_second_time_is_no_error(account: str, role):
    bucket = {"LocationConstraint": REGION}
    client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=bucket)
    role()
    code, lines, errors = role("--delete")
    assert (code, len(lines), errors) == (0, 3, [])
    assert groups() == []
    assert roles() == {SPOT}
    assert client("iam").list_instance_profiles()["InstanceProfiles"] == []
    assert [each["Name"] for each in client("s3").list_buckets()["Buckets"]] == [BUCKET]
    assert role("--delete") == (0, [], [])


def test_while_machines_use_the_group_nothing_is_deleted(account: str, role):
    role()
    (group,) = groups()
    started = {"ImageId": IMAGE, "SecurityGroupIds": [group["GroupId"]], "MinCount": 1, "MaxCount": 1}
    machine = client("ec2").run_instances(**started)["Instances"][0]["InstanceId"]
    code, lines, errors = role("--delete")
    assert (code, lines) == (2, [])
    assert errors == [
        f"security group beamclip: machines are in it: {machine}. Run `ray down cluster.yaml`, and try again."
    ]
    assert {HEAD, WORKER} <= roles()


@pytest.mark.parametrize(
    ("tags", "whose"),
    [
        ([], "was not made by this command"),
        ([{"Key": "ray-cluster-name", "Value": "birds"}], "belongs to the cluster birds"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--delete"]])
def test_a_role_of_somebody_else_is_left_alone(account: str, role, tags: list[Any], whose: str, arguments):
    trust = json.dumps(trust_policy())
    client("iam").create_role(RoleName=WORKER, AssumeRolePolicyDocument=trust, Tags=tags)
    code, _lines, errors = role(*arguments)
    message = f"role {WORKER}: {whose}. Name another IamInstanceProfile in the cluster file."
    assert (code, errors) == (2, [message])
    assert WORKER in roles()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f"s3://{BUCKET}/", "s3://YOUR-BUCKET/", "YOUR-BUCKET is a placeholder. Put yours."),
        (ADDRESS, "203.0.113.1/32", ": 203.0.113.1/32 is a placeholder. Put yours."),
        (ADDRESS, "5.6.7.8", "provider.security_group.IpPermissions.IpRanges: 5.6.7.8 are no addresses. "),
        (
            f"s3://{BUCKET}/beamclip",
            "/shared",
            "s3://BUCKET/... after setup.sh in setup_commands: is missing.",
        ),
        ("GroupName: beamclip", "{}", "line 61 is not valid YAML"),
        ("    GroupName: beamclip\n", "", "provider.security_group.GroupName: is missing."),
        ("{Name: beamclip-head}", "{}", "IamInstanceProfile of the head: is missing."),
        ("{Name: beamclip-worker}", "{Name: beamclip-head}", "head and workers have the same "),
        (
            "{Name: beamclip-head}",
            "beamclip-head",
            "head.node_config.IamInstanceProfile: 'beamclip-head' is no",
        ),
        (
            "FromPort: 22",
            "FromPort: ssh",
            "provider.security_group.IpPermissions.FromPort: 'ssh' is no number.",
        ),
        ("IpProtocol: tcp\n        ", "", "provider.security_group.IpPermissions: IpProtocol is missing."),
        ("  region: us-west-2\n", "", "provider: region is missing."),
    ],
)
def test_a_mistake_in_the_file_is_one_line_and_nothing_is_made(
    account: str, role, edit: Edit, old: str, new: str, message: str
):
    edit(old, new)
    code, lines, errors = role()
    assert (code, lines, len(errors)) == (2, [], 1)
    assert message in errors[0]
    assert roles() == set()


def test_what_aws_refuses_is_one_line(account: str, role):
    role()
    document = json.dumps(worker_policy(scope(account)))
    added = client("iam").create_policy(PolicyName="of-the-user", PolicyDocument=document)["Policy"]
    client("iam").attach_role_policy(RoleName=WORKER, PolicyArn=added["Arn"])
    code, _lines, errors = role("--delete")
    assert (code, len(errors)) == (1, 1)
    assert errors[0].startswith("AWS: (DeleteConflict) when calling the DeleteRole operation: ")
    assert WORKER in roles()


def test_another_provider_is_refused(role, edit: Edit):
    edit("  type: aws", "  type: azure")
    assert role()[::2] == (2, ["cluster.yaml: provider.type is azure, and this is for aws."])


@pytest.fixture
def laptop(account: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """Does what `ray up` does before the first machine starts; returns what it makes of the file."""
    from ray.autoscaler._private.aws import config, utils
    from ray.autoscaler._private.util import prepare_config

    def clear() -> None:
        for cached in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
            cached.cache_clear()

    def bootstrap() -> dict[str, Any]:
        clear()
        return dict(config.bootstrap_aws(prepare_config(yaml.safe_load(Path("cluster.yaml").read_text()))))

    yield bootstrap
    clear()


def test_ray_takes_the_group_as_it_is(access: list[str], laptop):
    before = groups()
    cluster = laptop()
    assert groups() == before
    used = {each["node_config"]["SecurityGroupIds"][0] for each in cluster["available_node_types"].values()}
    assert used == {before[0]["GroupId"]}


def test_ray_asks_nothing_of_iam_and_makes_no_role(access: list[str], laptop):
    before = roles()
    with recorded() as calls:
        laptop()
    assert [call.action for call in calls if not call.action.startswith("ec2:")] == []
    assert roles() == before


def test_ray_alone_would_let_in_ssh_from_everywhere_and_the_command_closes_that(
    account: str, checkout: Path, laptop, role
):
    laptop()
    assert "0.0.0.0/0" in addresses(groups()[0])
    code, lines, _errors = role()
    assert code == 0
    assert addresses(groups()[0]) == [ADDRESS]
    assert any("no longer lets in tcp 22 from 0.0.0.0/0" in line for line in lines)


@pytest.mark.parametrize("kind", ["head", "gpu", "cpu"])
def test_ray_starts_machines_with_the_profile_the_disks_and_the_metadata_service_of_the_file(
    access: list[str], laptop, kind: str
):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    with recorded() as calls:
        cluster = laptop()
        provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
        provider.create_node(cluster["available_node_types"][kind]["node_config"], {}, 1)
    (start,) = (call.parameters for call in calls if call.action == "ec2:RunInstances")
    assert start["IamInstanceProfile"] == {"Name": HEAD if kind == "head" else WORKER}
    assert start["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
    assert all(
        disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]
        for disk in start["BlockDeviceMappings"]
    )
    assert (start.get("InstanceMarketOptions") is None) == (kind == "head")
