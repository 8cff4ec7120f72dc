"""Make and delete what a cluster needs in an AWS account. Made again, what differs is changed."""

import json
from collections.abc import Callable, Iterator

from beamclip.cluster.aws.account import Account, error_code
from beamclip.cluster.aws.firewall import delete_group, make_group, usable_vpcs
from beamclip.cluster.aws.policies import (
    CLUSTER_TAG,
    Document,
    Scope,
    head_policy,
    trust_policy,
    worker_policy,
)
from beamclip.cluster.aws.settings import AwsSettings
from beamclip.errors import InputError

POLICY_NAME = "beamclip"
"""Name of the one policy in each role."""
_SPOT = "spot.amazonaws.com"
"""The service that starts spot machines for EC2."""


def make_access(account: Account, settings: AwsSettings) -> Iterator[str]:
    """Make roles, instance profiles and security group; yield a line for each when it is there.

    Raises:
        InputError: the file does not name what is to be made.
    """
    head, worker, bucket = _names(settings)
    vpcs = _group_vpcs(account, settings)
    if not vpcs and not settings.own_groups:
        raise InputError(no_subnet(settings))
    cluster = settings.cluster_name
    scope = Scope(account.partition, account.id, settings.region, cluster, bucket, worker)
    _make_role(account, worker, worker_policy(scope), cluster)
    yield f"role and instance profile {worker}: reads and writes s3://{bucket}"
    _make_role(account, head, head_policy(scope), cluster)
    yield f"role and instance profile {head}: the same, and starts and ends workers in {settings.region}"
    if settings.spot:
        yield from _make_spot_role(account)
    for vpc in vpcs:
        yield from make_group(account, settings, vpc)


def delete_access(account: Account, settings: AwsSettings) -> Iterator[str]:
    """Delete what `make_access` made; yield a line for each.

    The role by which EC2 starts spot machines stays: it belongs to the whole account.
    """
    head, worker, _bucket = _names(settings)
    # The group comes first: it is kept while machines are in it, and then nothing else is lost.
    for vpc in _group_vpcs(account, settings):
        yield from delete_group(account, settings, vpc)
    for name in (head, worker):
        if _delete_role(account, name, settings.cluster_name):
            yield f"role and instance profile {name}: deleted"


def no_subnet(settings: AwsSettings) -> str:
    """Return what to do if Ray would find no network to start machines in."""
    return (
        f"{settings.region} has no subnet that gives machines public addresses. "
        f"Run: aws ec2 create-default-vpc --region {settings.region}"
    )


def _group_vpcs(account: Account, settings: AwsSettings) -> list[str]:
    """Return the networks that get a security group; none if the node types bring theirs."""
    return [] if settings.own_groups else usable_vpcs(account, settings)


def _names(settings: AwsSettings) -> tuple[str, str, str]:
    """Return the head's profile, the workers' and the bucket.

    Raises:
        InputError: one of them is not in the file.
    """
    named = {
        "IamInstanceProfile of the head": settings.head_profile,
        "one IamInstanceProfile of all other node types": settings.worker_profile,
        "s3://BUCKET/... after setup.sh in setup_commands": settings.bucket,
        "provider.security_group.GroupName": settings.group or settings.own_groups,
    }
    for what, name in named.items():
        if not name:
            raise InputError(f"{settings.file}: {what}: is missing.")
    if settings.head_profile == settings.worker_profile:
        raise InputError(
            f"{settings.file}: head and workers have the same IamInstanceProfile {settings.head_profile}, "
            "and workers would be able to start machines. Give them different ones."
        )
    return str(settings.head_profile), str(settings.worker_profile), str(settings.bucket)


def _make_role(account: Account, name: str, policy: Document, cluster: str) -> None:
    iam = account.iam
    trust = json.dumps(trust_policy())
    if _has_role(account, name, cluster):
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=trust)
    else:
        tags = [{"Key": CLUSTER_TAG, "Value": cluster}]
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust, Tags=tags)
    iam.put_role_policy(RoleName=name, PolicyName=POLICY_NAME, PolicyDocument=json.dumps(policy))
    if not _exists(lambda: iam.get_instance_profile(InstanceProfileName=name)):
        iam.create_instance_profile(InstanceProfileName=name)
        iam.get_waiter("instance_profile_exists").wait(InstanceProfileName=name)
    roles = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
    if not roles:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    elif roles[0]["RoleName"] != name:
        raise InputError(f"instance profile {name}: holds another role, {roles[0]['RoleName']}. Delete it.")


def _has_role(account: Account, name: str, cluster: str) -> bool:
    """Return whether there is a role of this name.

    Raises:
        InputError: it was not made for this cluster, and must not be changed.
    """
    if not _exists(lambda: account.iam.get_role(RoleName=name)):
        return False
    role = account.iam.get_role(RoleName=name)["Role"]
    owner = next((tag["Value"] for tag in role.get("Tags", []) if tag["Key"] == CLUSTER_TAG), None)
    if owner != cluster:
        whose = f"belongs to the cluster {owner}" if owner else "was not made by this command"
        raise InputError(f"role {name}: {whose}. Name another IamInstanceProfile in the cluster file.")
    return True


def _make_spot_role(account: Account) -> Iterator[str]:
    """Make the role by which EC2 starts spot machines, if the account has never had one."""
    if not account.iam.list_roles(PathPrefix=f"/aws-service-role/{_SPOT}/")["Roles"]:
        made = account.iam.create_service_linked_role(AWSServiceName=_SPOT)["Role"]
        yield f"role {made['RoleName']}: lets EC2 start spot machines in this account"


def _delete_role(account: Account, name: str, cluster: str) -> bool:
    """Delete a role with its profile and policy; return whether there was one."""
    iam = account.iam
    if not _has_role(account, name, cluster):
        return False
    _exists(lambda: iam.remove_role_from_instance_profile(InstanceProfileName=name, RoleName=name))
    _exists(lambda: iam.delete_instance_profile(InstanceProfileName=name))
    _exists(lambda: iam.delete_role_policy(RoleName=name, PolicyName=POLICY_NAME))
    iam.delete_role(RoleName=name)
    return True


def _exists(call: Callable[[], object]) -> bool:
    """Make a call of IAM; return whether what it is about exists."""
    try:
        call()
    except Exception as error:
        if error_code(error) != "NoSuchEntity":
            raise
        return False
    return True
