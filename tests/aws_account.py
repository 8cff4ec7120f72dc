"""An AWS account in this process, as moto answers for it, and every call that is made to it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

CLUSTER_YAML = Path(__file__).parents[1] / "cluster.yaml"
REGION, BUCKET, IMAGE, ADDRESS = "us-west-2", "birds", "ami-785db401", "5.6.7.8/32"
"""What a user puts into cluster.yaml; moto knows the image."""


def filled_in() -> str:
    """Return cluster.yaml with its lines filled in."""
    text = CLUSTER_YAML.read_text()
    for placeholder, value in {
        "ami-00000000000000000": IMAGE,
        "s3://YOUR-BUCKET/beamclip #": f"s3://{BUCKET}/beamclip #",
        "203.0.113.1/32": ADDRESS,
    }.items():
        assert text.count(placeholder) == 1
        text = text.replace(placeholder, value)
    return text


def client(service: str) -> Any:
    """Return a client of the account, whose calls are not recorded."""
    return boto3.session.Session().client(service, region_name=REGION)


@dataclass(frozen=True)
class Call:
    """A call to AWS."""

    action: str
    """As in a policy: ec2:RunInstances."""
    parameters: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Record the calls of clients that are made inside from boto3's default session, as Ray makes its own."""
    calls: list[Call] = []

    def record(params: dict[str, Any], model: Any, **_: Any) -> None:
        calls.append(Call(f"{model.service_model.signing_name}:{model.name}", copy.deepcopy(params)))

    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("before-parameter-build", record)
    try:
        yield calls
    finally:
        boto3.setup_default_session()
