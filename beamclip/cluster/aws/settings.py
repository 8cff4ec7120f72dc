"""What a cluster file says about AWS."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from beamclip.cluster.aws.rules import Rule, parse_rules
from beamclip.cluster.cluster_file import ClusterFile, Part

_STORAGE = re.compile(r"setup\.sh\s+['\"]?s3://([^/\s'\"]+)")


@dataclass(frozen=True)
class AwsSettings:
    """The parts of a cluster file that name things in an AWS account."""

    file: str
    cluster_name: str
    region: str
    credentials: dict[str, str]
    """Those in the file itself; mostly none, and boto3 finds them where every AWS tool does."""
    head_profile: str | None
    worker_profile: str | None
    """Instance profile of all workers; None if they have none, or different ones."""
    images: tuple[str, ...]
    instance_types: tuple[str, ...]
    bucket: str | None
    """Bucket of the cluster's storage; None if that is a folder."""
    group: str | None
    """Name of the security group."""
    group_rules: tuple[Rule, ...]
    """Who may come in from outside of the cluster."""
    own_groups: bool
    """Whether node types bring security groups of their own, by their ids."""
    subnets: tuple[str, ...]
    private: bool
    """Whether nodes are reached by their private addresses."""
    spot: bool
    """Whether a node type takes spot machines."""

    @property
    def make_access(self) -> str:
        """Command that makes roles and security group for this file."""
        return "make aws-role" + ("" if self.file == "cluster.yaml" else f" CLUSTER={self.file}")


def aws_settings(cluster: ClusterFile) -> AwsSettings:
    """Return what a cluster file of provider `aws` says.

    Raises:
        InputError: a part that Ray hands to EC2 unread has another shape than EC2 takes.
    """
    content = cluster.content
    provider = Part(cluster.provider, f"{cluster.path}: provider")
    types = {
        name: Part(node["node_config"], f"{cluster.path}: {name}.node_config")
        for name, node in content.get("available_node_types", {}).items()
    }
    nodes = list(types.values())
    head = types.get(content.get("head_node_type", ""))
    profiles = {_profile(node) for node in nodes if node is not head}
    group = provider.part("security_group")
    return AwsSettings(
        file=str(cluster.path),
        cluster_name=content["cluster_name"],
        region=str(provider.needed("region")),
        credentials=provider.part("aws_credentials").content,
        head_profile=_profile(head) if head else None,
        worker_profile=profiles.pop() if len(profiles) == 1 else None,
        images=_distinct(filter(None, (node.text("ImageId") for node in nodes))),
        instance_types=_distinct(filter(None, (node.text("InstanceType") for node in nodes))),
        bucket=_bucket(content.get("setup_commands", [])),
        group=group.text("GroupName"),
        group_rules=tuple(rule for part in group.parts("IpPermissions") for rule in parse_rules(part)),
        own_groups=any("SecurityGroupIds" in node.content for node in nodes),
        subnets=_distinct(subnet for node in nodes for subnet in node.texts("SubnetIds")),
        private=bool(cluster.provider.get("use_internal_ips")),
        spot=any(node.part("InstanceMarketOptions").text("MarketType") == "spot" for node in nodes),
    )


def _profile(node: Part) -> str | None:
    """Return the name of a node type's instance profile, given by name or by ARN."""
    profile = node.part("IamInstanceProfile")
    return profile.text("Name") or (profile.text("Arn") or "").rpartition("/")[2] or None


def _bucket(commands: list[str]) -> str | None:
    found = next(filter(None, map(_STORAGE.search, commands)), None)
    return found[1] if found else None


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
