"""`python -m beamclip.cluster.check`: what is missing before `ray up`, one line each, and exit code 2."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_account import ADDRESS, BUCKET, CLUSTER_YAML, IMAGE, REGION, client

from beamclip.cluster import check as command
from beamclip.cluster.aws import account as aws_account_module
from beamclip.cluster.aws import questions

Edit = Callable[[str, str], None]
TOKEN = "~/.ray/auth_token: does not exist; the nodes share this secret. Run: ray get-auth-token --generate"
LOCAL = """
cluster_name: beamclip
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
auth: {ssh_user: ubuntu, ssh_private_key: ~/.ssh/key}
"""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command where ssh and rsync are; returns its exit code and what it printed to stderr."""
    found = shutil.which
    monkeypatch.setattr(
        shutil,
        "which",
        lambda name, *rest: f"/bin/{name}" if name in ("ssh", "rsync") else found(name, *rest),
    )

    def run(file: str = "cluster.yaml") -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["check", file])
        code = command.main()
        printed = capsys.readouterr()
        assert printed.out == ("" if code else f"{file}: ready for ray up\n")
        return code, printed.err.splitlines()

    return run


@pytest.fixture
def token(home: Path) -> None:
    """The secret of the nodes, on this machine."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("secret")


@pytest.fixture
def ready(token: None, access: list[str]) -> None:
    """An account and a machine on which nothing is missing."""
    bucket = {"LocationConstraint": REGION}
    client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=bucket)


def test_where_nothing_is_missing_the_exit_code_is_0(ready: None, check):
    assert check() == (0, [])


def test_the_file_as_it_comes_names_its_three_lines_and_all_that_an_empty_account_lacks(
    account: str, checkout: Path, check
):
    (checkout / "cluster.yaml").write_text(CLUSTER_YAML.read_text())
    code, errors = check()
    assert code == 2
    (vpc,) = (each["VpcId"] for each in client("ec2").describe_vpcs()["Vpcs"])
    line = {
        placeholder: number
        for number, text in enumerate(CLUSTER_YAML.read_text().splitlines(), 1)
        for placeholder in ("203.0.113.1/32", "YOUR-BUCKET")
        if placeholder in text and text.endswith("# EDIT")
    }
    assert errors == [
        *(
            f"cluster.yaml: line {number}: {name} is a placeholder. Put in your own."
            for name, number in line.items()
        ),
        TOKEN,
        "cluster.yaml: ImageId ami-00000000000000000 is a placeholder. Replace it with what this prints: "
        "aws ssm get-parameter --region us-west-2 --query Parameter.Value --output text "
        f"--name {questions.IMAGE_PARAMETER}",
        "instance profile beamclip-head: does not exist. Run: make aws-role",
        "instance profile beamclip-worker: does not exist. Run: make aws-role",
        f"security group beamclip: does not exist in {vpc}, and Ray would make one that lets in SSH from "
        "everywhere. Run: make aws-role",
    ]


def test_a_placeholder_image_is_answered_with_the_newest_one(
    ready: None, edit: Edit, check, monkeypatch: pytest.MonkeyPatch
):
    # Parameters below /aws are Amazon's own, in moto too.
    monkeypatch.setattr(questions, "IMAGE_PARAMETER", "/images/latest")
    client("ssm").put_parameter(Name="/images/latest", Value="ami-1234", Type="String")
    edit(IMAGE, "ami-00000000000000000")
    assert check() == (
        2,
        [
            "cluster.yaml: ImageId ami-00000000000000000 is a placeholder. "
            "Use ami-1234, the newest Deep Learning Base image in us-west-2."
        ],
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            IMAGE,
            "ami-0123456789abcdef0",
            "ImageId ami-0123456789abcdef0: no such image in us-west-2. Replace it",
        ),
        ("g5.12xlarge", "g5.13xlarge", "InstanceType g5.13xlarge: not offered in us-west-2. Choose another."),
        ("beamclip-worker", "mine", "instance profile mine: does not exist. Run: make aws-role"),
        (
            f"s3://{BUCKET}/",
            "s3://fish/",
            "bucket fish: does not exist. Run: aws s3 mb s3://fish --region us",
        ),
        ("GroupName: beamclip", "GroupName: mine", "security group mine: does not exist in vpc-"),
        (ADDRESS, "9.9.9.9/32", "lets in tcp 22 from 5.6.7.8/32 and does not let in tcp 22 from 9.9.9.9/32"),
        (" tune\n", " tunes\n", "cluster.yaml: file_mounts: tunes is not in "),
        (
            "    GroupName: beamclip\n",
            "",
            "GroupName: is missing. Ray would make a group that lets in SSH from",
        ),
    ],
)
def test_each_thing_that_is_missing_is_one_line(
    ready: None, edit: Edit, check, old: str, new: str, message: str
):
    edit(old, new)
    code, errors = check()
    assert (code, len(errors)) == (2, 1)
    assert message in errors[0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_workers: 12", 'max_workers: "12"', "max_workers: '12' is not of type 'integer'."),
        ("GPU: 4", "GPU: 0.5", "available_node_types.gpu.resources.GPU: 0.5 is not of type 'integer'."),
        ("setup_commands:", "setup_command:", "top level: Additional properties are not allowed ("),
        ("head_node_type: head", "head_node_type: top", "Ray refuses it: `head_node_type` must be one of "),
        (
            "    min_workers: 0",
            "    min_workers: 50",
            "Ray refuses it: The specified global `max_workers` is",
        ),
        ("  type: aws", "  type: abacus", "Ray refuses it: Unsupported node provider: abacus."),
        ("  type: aws", "  type: local", "Ray refuses it: The field available_node_types is not supported "),
        ("provider:\n", "provider: {\n", "is not valid YAML: "),
        (
            "  region: us-west-2\n",
            "  region: a\n  region: b\n",
            "is not valid YAML: the key 'region' is given ",
        ),
        (
            "cluster_name: beamclip",
            "cluster_name: 2026-13-45",
            "this is not valid YAML: month must be in 1..12.",
        ),
        ("{MarketType: spot}", "spot", "gpu.node_config.InstanceMarketOptions: 'spot' is not a mapping."),
    ],
)
def test_a_file_that_ray_would_refuse_is_one_line_without_a_traceback(
    token: None, checkout: Path, edit: Edit, check, old: str, new: str, message: str
):
    edit(old, new)
    code, errors = check()
    assert (code, len(errors)) == (2, 1), errors
    assert message in errors[0]


def test_a_missing_file_is_one_line(checkout: Path, check):
    assert check("none.yaml")[0] == 2


def test_without_boto3_the_line_says_how_to_get_it(ready: None, check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(aws_account_module, "find_spec", lambda _name: None)
    assert check() == (
        2,
        ["boto3 is not installed, and Ray's AWS part needs it. Run: pip install boto3"],
    )


def test_without_credentials_the_line_says_where_they_may_be(token: None, checkout: Path, check):
    code, errors = check()
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith("no AWS credentials were found. Run `aws configure`, or set AWS_PROFILE, or ")


def test_credentials_in_the_file_count(ready: None, edit: Edit, check, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        assert check()[0] == 2
        keys = "aws_credentials: {aws_access_key_id: a, aws_secret_access_key: b}"
        edit("  cache_stopped_nodes: false\n", f"  cache_stopped_nodes: false\n  {keys}\n")
        assert check() == (0, [])


def test_what_aws_does_not_answer_is_said_and_blocks_nothing(
    ready: None, check, monkeypatch: pytest.MonkeyPatch
):
    from botocore.exceptions import ClientError

    def refuse(*_: object) -> Any:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetInstanceProfile")

    monkeypatch.setattr(questions, "_profiles", refuse)
    assert check() == (
        0,
        ["not checked: instance profiles: (AccessDenied) when calling the GetInstanceProfile operation: no"],
    )


def test_a_group_that_ray_opened_to_everybody_is_named(ready: None, check):
    (group,) = client("ec2").describe_security_groups(
        Filters=[{"Name": "group-name", "Values": ["beamclip"]}]
    )["SecurityGroups"]
    everywhere = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    client("ec2").authorize_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[everywhere])
    assert check() == (
        2,
        [
            f"security group beamclip ({group['GroupId']}): lets in tcp 22 from 0.0.0.0/0, unlike "
            "cluster.yaml. Run: make aws-role"
        ],
    )


def test_a_region_without_a_public_subnet_is_named(ready: None, check):
    for subnet in client("ec2").describe_subnets()["Subnets"]:
        client("ec2").delete_subnet(SubnetId=subnet["SubnetId"])
    code, errors = check()
    assert (code, errors) == (
        2,
        [
            "us-west-2 has no subnet that gives machines public addresses. "
            "Run: aws ec2 create-default-vpc --region us-west-2"
        ],
    )


def test_the_command_to_run_names_a_file_of_another_name(token: None, account: str, checkout: Path, check):
    (checkout / "cluster.yaml").rename(checkout / "large.yaml")
    assert any(line.endswith("Run: make aws-role CLUSTER=large.yaml") for line in check("large.yaml")[1])


def test_machines_of_ones_own_ask_nothing_of_aws_and_need_a_key(
    checkout: Path, home: Path, token: None, check
):
    Path("mine.yaml").write_text(LOCAL)
    assert check("mine.yaml") == (
        2,
        ["mine.yaml: auth.ssh_private_key: ~/.ssh/key does not exist. Give the key that opens the nodes."],
    )
    (home / ".ssh").mkdir()
    (home / ".ssh" / "key").write_text("key")
    assert check("mine.yaml") == (0, [])
    Path("mine.yaml").write_text(LOCAL.replace(", ssh_private_key: ~/.ssh/key", ""))
    assert check("mine.yaml") == (
        2,
        ["mine.yaml: auth.ssh_private_key: is missing. The head needs it to reach the workers."],
    )


def test_addresses_of_the_documentation_are_placeholders(checkout: Path, home: Path, check):
    (home / ".ssh").mkdir()
    (home / ".ssh" / "key").write_text("key")
    Path("mine.yaml").write_text(LOCAL.replace("10.0.0.", "192.0.2."))
    assert check("mine.yaml") == (
        2,
        [f"mine.yaml: line 3: 192.0.2.{n} is a placeholder. Put in your own." for n in (1, 2)],
    )


def test_ray_up_needs_ssh_and_rsync(ready: None, check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "rsync" else f"/bin/{name}")
    assert check() == (2, ["rsync is not installed on this machine, and `ray up` needs it."])
