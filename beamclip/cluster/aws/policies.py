"""What the head and the workers of a cluster may do on AWS: least privilege, as IAM policies.

Left to itself, Ray gives the head full access to EC2 and S3 of the account, and workers no role at all. Here
the head may see machines of its region, start workers that bear its cluster's tag, tag and end those, and
hand them the workers' role, no other. Head and workers may list, read, write and delete in one bucket.

A bucket or disks encrypted with a KMS key of your own take more: the use of that key.
"""

from dataclasses import dataclass
from typing import Any

CLUSTER_TAG = "ray-cluster-name"
"""Tag by which Ray knows the machines of a cluster; it is set in the call that starts them."""

Document = dict[str, Any]
"""An IAM policy, as its JSON."""


@dataclass(frozen=True)
class Scope:
    """What the policies are limited to."""

    partition: str
    """`aws`; `aws-cn` and `aws-us-gov` name their resources otherwise."""
    account: str
    region: str
    cluster_name: str
    bucket: str
    worker_role: str

    def ec2(self, kind: str, account: str | None = None) -> str:
        """Return the name of all resources of a kind, in this region and account."""
        owner = self.account if account is None else account
        return f"arn:{self.partition}:ec2:{self.region}:{owner}:{kind}/*"


def trust_policy() -> Document:
    """Return who may take on the roles: EC2, for the machines that it starts with them."""
    return _document({"Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"})


def worker_policy(scope: Scope) -> Document:
    """Return what a worker may do."""
    return _document(*_storage(scope))


def head_policy(scope: Scope) -> Document:
    """Return what the head, on which Ray's autoscaler runs, may do."""
    return _document(
        # EC2 cannot limit this one to some machines.
        {
            "Sid": "SeeMachines",
            "Action": "ec2:DescribeInstances",
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:RequestedRegion": scope.region}},
        },
        {
            "Sid": "StartTaggedMachines",
            "Action": "ec2:RunInstances",
            "Resource": scope.ec2("instance"),
            "Condition": {"StringEquals": {f"aws:RequestTag/{CLUSTER_TAG}": scope.cluster_name}},
        },
        # To start a machine is to use all of these. Images and their snapshots belong to another account.
        {
            "Sid": "StartFrom",
            "Action": "ec2:RunInstances",
            "Resource": [
                scope.ec2("image", account=""),
                scope.ec2("snapshot", account=""),
                *map(scope.ec2, ("key-pair", "network-interface", "security-group", "subnet", "volume")),
                scope.ec2("spot-instances-request"),
            ],
        },
        {
            "Sid": "TagAtStart",
            "Action": "ec2:CreateTags",
            "Resource": scope.ec2("instance"),
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {
            "Sid": "TagAndEndOwnMachines",
            "Action": ["ec2:CreateTags", "ec2:TerminateInstances"],
            "Resource": scope.ec2("instance"),
            "Condition": {"StringEquals": {f"aws:ResourceTag/{CLUSTER_TAG}": scope.cluster_name}},
        },
        # Without the limit to one role, whoever is on the head could give a machine the rights of an admin.
        {
            "Sid": "HandOnTheWorkersRole",
            "Action": "iam:PassRole",
            "Resource": f"arn:{scope.partition}:iam::{scope.account}:role/{scope.worker_role}",
            "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
        },
        *_storage(scope),
    )


def _storage(scope: Scope) -> list[Document]:
    bucket = f"arn:{scope.partition}:s3:::{scope.bucket}"
    return [
        {"Sid": "ListBucket", "Action": "s3:ListBucket", "Resource": bucket},
        {
            "Sid": "UseObjects",
            # Large objects are sent in parts, under PutObject; an upload that fails is aborted.
            "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            "Resource": f"{bucket}/*",
        },
    ]


def _document(*statements: Document) -> Document:
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", **statement} for statement in statements],
    }
