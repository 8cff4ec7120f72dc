"""An AWS account, as boto3 reaches it, and its errors in one line."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from beamclip.cluster.aws.settings import AwsSettings
from beamclip.errors import InputError
from beamclip.places import one_line

NO_BOTO3 = "boto3 is not installed, and Ray's AWS part needs it. Run: pip install boto3"
NO_CREDENTIALS = (
    "no AWS credentials were found. Run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY."
)
_REFUSALS = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")


@dataclass(frozen=True)
class Account:
    """An account, and clients of one region that give up after seconds."""

    id: str
    """Its number."""
    partition: str
    """`aws`; `aws-cn` and `aws-us-gov` in China and for the government of the USA."""
    ec2: Any
    iam: Any
    s3: Any
    ssm: Any


def open_account(settings: AwsSettings) -> Account:
    """Return the account that the credentials at hand belong to.

    Raises:
        InputError: boto3 or credentials are missing, or AWS does not take them.
    """
    if not find_spec("boto3"):
        raise InputError(NO_BOTO3)
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 2})
    try:
        session = boto3.session.Session(region_name=settings.region, **settings.credentials)
        if session.get_credentials() is None:
            raise InputError(NO_CREDENTIALS)
        caller = session.client("sts", config=config).get_caller_identity()
        clients = {name: session.client(name, config=config) for name in ("ec2", "iam", "s3", "ssm")}
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"AWS does not take the credentials: {said(error)}.") from error
    return Account(id=caller["Account"], partition=caller["Arn"].split(":")[1], **clients)


def error_code(error: Exception) -> str:
    """Return the code of an AWS error, such as NoSuchEntity; empty if AWS was not reached."""
    code: str = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    return code


def is_aws_error(error: Exception) -> bool:
    """Whether this came from AWS or the way to it; found out without boto3, which may be missing."""
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore")


def is_refusal(error: Exception) -> bool:
    """Whether AWS says that the caller may not ask this."""
    return error_code(error) in _REFUSALS


def said(error: Exception) -> str:
    """Return what AWS, or the way to it, says of an error, in one line."""
    return one_line(error).removeprefix("An error occurred ")
