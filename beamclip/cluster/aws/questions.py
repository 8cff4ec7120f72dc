"""What AWS has to have before `ray up` can work, asked without changing anything."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from beamclip.cluster.aws.account import Account, error_code, is_aws_error, is_refusal, open_account, said
from beamclip.cluster.aws.firewall import difference, find_group, usable_vpcs
from beamclip.cluster.aws.roles import no_subnet
from beamclip.cluster.aws.settings import AwsSettings
from beamclip.errors import InputError

IMAGE_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
"""Where AWS publishes the id of the image that cluster.yaml is written for, in every region."""
_PLACEHOLDER_IMAGE = "ami-00000000000000000"


@dataclass(frozen=True)
class Finding:
    """Something that stands in the way of `ray up`, or could not be asked."""

    text: str
    """One line: what it is, and what to do."""
    blocks: bool = True
    """Whether `ray up` would fail, or start something unsafe; else nobody knows."""


def aws_findings(settings: AwsSettings) -> Iterator[Finding]:
    """Yield everything that is missing on AWS, as far as the credentials at hand let one see."""
    if not settings.group and not settings.own_groups:
        yield Finding(
            f"{settings.file}: provider.security_group.GroupName: is missing. "
            "Ray would make a group that lets in SSH from everywhere."
        )
    try:
        account = open_account(settings)
    except InputError as error:
        yield Finding(str(error))
        yield from _placeholder_image(settings, None)
        return
    questions = (
        ("images", _images),
        ("instance types", _instance_types),
        ("instance profiles", _profiles),
        ("the bucket", _bucket),
        ("the security group", _group),
    )
    yield from chain.from_iterable(_ask(what, ask, account, settings) for what, ask in questions)


def _ask(
    what: str,
    ask: Callable[[Account, AwsSettings], Iterator[Finding]],
    account: Account,
    settings: AwsSettings,
) -> Iterator[Finding]:
    """Yield the findings of one question; a question that AWS does not answer blocks nothing."""
    try:
        yield from ask(account, settings)
    except Exception as error:
        if not is_aws_error(error):
            raise
        yield Finding(f"{what}: {said(error)}", blocks=False)


def _images(account: Account, settings: AwsSettings) -> Iterator[Finding]:
    yield from _placeholder_image(settings, account)
    for image in settings.images:
        if image == _PLACEHOLDER_IMAGE:
            continue
        try:
            known = bool(account.ec2.describe_images(ImageIds=[image])["Images"])
        except Exception as error:
            if not error_code(error).startswith("InvalidAMIID"):
                raise
            known = False
        if not known:
            advice = _image(settings, account)
            yield Finding(f"{settings.file}: ImageId {image}: {settings.region} has no such image. {advice}")


def _placeholder_image(settings: AwsSettings, account: Account | None) -> Iterator[Finding]:
    if _PLACEHOLDER_IMAGE in settings.images:
        advice = _image(settings, account)
        yield Finding(f"{settings.file}: ImageId {_PLACEHOLDER_IMAGE} is a placeholder. {advice}")


def _image(settings: AwsSettings, account: Account | None) -> str:
    """Return which image to put into the file: its id, or how to find it out."""
    if account:
        try:
            found = account.ssm.get_parameter(Name=IMAGE_PARAMETER)["Parameter"]["Value"]
            return f"Put {found}, the newest Deep Learning Base image there."
        except Exception as error:  # not allowed, or not in this region: the command shows why
            if not is_aws_error(error):
                raise
    return (
        f"Put what this prints: aws ssm get-parameter --region {settings.region} "
        f"--query Parameter.Value --output text --name {IMAGE_PARAMETER}"
    )


def _instance_types(account: Account, settings: AwsSettings) -> Iterator[Finding]:
    offered = account.ec2.describe_instance_type_offerings(
        Filters=[{"Name": "instance-type", "Values": list(settings.instance_types)}]
    )["InstanceTypeOfferings"]
    for name in set(settings.instance_types) - {offer["InstanceType"] for offer in offered}:
        yield Finding(f"{settings.file}: InstanceType {name}: {settings.region} has none. Take another.")


def _profiles(account: Account, settings: AwsSettings) -> Iterator[Finding]:
    for name in filter(None, (settings.head_profile, settings.worker_profile)):
        try:
            roles = account.iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        except Exception as error:
            if error_code(error) != "NoSuchEntity":
                raise
            yield Finding(f"instance profile {name}: does not exist. Run: {settings.make_access}")
            continue
        if not roles:
            yield Finding(f"instance profile {name}: holds no role. Run: {settings.make_access}")


def _bucket(account: Account, settings: AwsSettings) -> Iterator[Finding]:
    name = settings.bucket
    if not name or name.startswith("YOUR-"):
        return
    try:
        account.s3.head_bucket(Bucket=name)
    except Exception as error:
        if error_code(error) in ("404", "NoSuchBucket"):
            yield Finding(
                f"bucket {name}: does not exist. Run: aws s3 mb s3://{name} --region {settings.region}"
            )
        elif is_refusal(error):
            yield Finding(f"bucket {name}: belongs to somebody else, or is closed to you. Take another.")
        else:
            raise


def _group(account: Account, settings: AwsSettings) -> Iterator[Finding]:
    if not settings.group or settings.own_groups:
        return
    vpcs = usable_vpcs(account, settings)
    if not vpcs:
        yield Finding(no_subnet(settings))
    for vpc in vpcs:
        group = find_group(account, settings, vpc)
        if group is None:
            yield Finding(
                f"security group {settings.group}: does not exist in {vpc}, and Ray would make one that lets "
                f"in SSH from everywhere. Run: {settings.make_access}"
            )
        elif apart := difference(group):
            yield Finding(
                f"security group {settings.group} ({group.id}): {apart}, unlike {settings.file}. "
                f"Run: {settings.make_access}"
            )
