"""The security group of a cluster: who reaches its machines.

Ray makes one if it finds none of that name, and always with SSH from everywhere (0.0.0.0/0); rules in the
cluster file only come on top. It leaves a group that has rules as it is. So the group is made before
`ray up`: all traffic inside the group, and from outside what the cluster file says and nothing else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from beamclip.cluster.aws.account import Account
from beamclip.cluster.aws.policies import CLUSTER_TAG
from beamclip.cluster.aws.rules import Rule, parse_rules
from beamclip.cluster.aws.settings import AwsSettings
from beamclip.cluster.cluster_file import Part
from beamclip.errors import InputError


@dataclass(frozen=True)
class Group:
    """A security group as it is, and as it should be."""

    id: str
    vpc: str
    cluster: str | None
    """Name of the cluster that it was made for, from its tag."""
    present: frozenset[Rule]
    wanted: frozenset[Rule]

    @property
    def missing(self) -> list[Rule]:
        """Rules that it lacks."""
        return sorted(self.wanted - self.present)

    @property
    def surplus(self) -> list[Rule]:
        """Rules that it has and should not have."""
        return sorted(self.present - self.wanted)


def usable_vpcs(account: Account, settings: AwsSettings) -> list[str]:
    """Return the networks in which Ray may start the cluster; mostly the default one alone.

    Ray takes the network of whichever usable subnet EC2 happens to list first in the last zone.
    """
    chosen = [{"Name": "subnet-id", "Values": list(settings.subnets)}] if settings.subnets else []
    pages = account.ec2.get_paginator("describe_subnets").paginate(Filters=chosen)
    subnets = [subnet for page in pages for subnet in page["Subnets"] if subnet["State"] == "available"]
    return sorted({each["VpcId"] for each in subnets if settings.private or each["MapPublicIpOnLaunch"]})


def find_group(account: Account, settings: AwsSettings, vpc: str) -> Group | None:
    """Return the cluster's security group in a network, or None if there is none."""
    names = {"group-name": settings.group, "vpc-id": vpc}
    filters = [{"Name": name, "Values": [value]} for name, value in names.items()]
    found = account.ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if not found:
        return None
    group_id = found[0]["GroupId"]
    inside = Rule("-1", -1, -1, group_id)
    present = frozenset(
        rule
        for each in found[0]["IpPermissions"]
        for rule in parse_rules(Part(each, f"security group {group_id}"))
    )
    wanted = frozenset([inside, *settings.group_rules])
    tags = {tag["Key"]: tag["Value"] for tag in found[0].get("Tags", [])}
    return Group(group_id, vpc, tags.get(CLUSTER_TAG), present, wanted)


def make_group(account: Account, settings: AwsSettings, vpc: str) -> Iterator[str]:
    """Make the group in a network, or give one that exists the rules of the file; yield what was done."""
    group = find_group(account, settings, vpc)
    if group is None:
        account.ec2.create_security_group(
            GroupName=settings.group,
            Description=f"Machines of the Ray cluster {settings.cluster_name}",
            VpcId=vpc,
            TagSpecifications=[
                {
                    "ResourceType": "security-group",
                    "Tags": [{"Key": CLUSTER_TAG, "Value": settings.cluster_name}],
                }
            ],
        )
        group = find_group(account, settings, vpc)
        assert group is not None
    _refuse_others(group, settings)
    name = f"security group {settings.group} ({group.id} in {vpc})"
    # First what is too much: it is what harms.
    if group.surplus:
        permissions = [rule.permission() for rule in group.surplus]
        account.ec2.revoke_security_group_ingress(GroupId=group.id, IpPermissions=permissions)
        yield f"{name} no longer lets in {_listed(group.surplus, group)}"
    if group.missing:
        permissions = [rule.permission() for rule in group.missing]
        account.ec2.authorize_security_group_ingress(GroupId=group.id, IpPermissions=permissions)
    yield f"{name} lets in {_listed(group.wanted, group)}"


def delete_group(account: Account, settings: AwsSettings, vpc: str) -> Iterator[str]:
    """Delete the group from a network, if it is there; yield what was done.

    Raises:
        InputError: machines are in it.
    """
    group = find_group(account, settings, vpc)
    if group:
        _refuse_others(group, settings)
        machines = _machines(account, group)
        if machines:
            raise InputError(
                f"security group {settings.group}: still used by {', '.join(machines)}. "
                f"Run `ray down {settings.file}`, and try again."
            )
        account.ec2.delete_security_group(GroupId=group.id)
        yield f"security group {settings.group} ({group.id} in {vpc}): deleted"


def _refuse_others(group: Group, settings: AwsSettings) -> None:
    """Raise InputError if a group was not made for this cluster, and must not be changed."""
    if group.cluster != settings.cluster_name:
        whose = f"belongs to the cluster {group.cluster}" if group.cluster else "was not made by this command"
        raise InputError(
            f"security group {settings.group}: {whose}. Give another GroupName in {settings.file}."
        )


def difference(group: Group) -> str:
    """Return in words how a group differs from the file; empty if it does not."""
    parts = [
        f"{verb} {_listed(rules, group)}"
        for verb, rules in (("lets in", group.surplus), ("does not let in", group.missing))
        if rules
    ]
    return " and ".join(parts)


def _machines(account: Account, group: Group) -> list[str]:
    states = ["pending", "running", "shutting-down", "stopping", "stopped"]
    filters = {"instance.group-id": [group.id], "instance-state-name": states}
    found = account.ec2.describe_instances(
        Filters=[{"Name": name, "Values": values} for name, values in filters.items()]
    )
    return [machine["InstanceId"] for each in found["Reservations"] for machine in each["Instances"]]


def _listed(rules: Iterable[Rule], group: Group) -> str:
    return ", ".join(str(rule).replace(group.id, "its own machines") for rule in sorted(rules))
