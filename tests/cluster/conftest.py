"""Fixtures of the tests about AWS."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
import yaml
from aws_account import filled_in
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID

from beamclip.cluster.aws.account import open_account
from beamclip.cluster.aws.roles import make_access
from beamclip.cluster.aws.settings import aws_settings
from beamclip.cluster.cluster_file import read_cluster_file


@pytest.fixture(scope="session", autouse=True)
def _one_loader() -> Iterator[None]:
    """Lets all clients share the descriptions of AWS's services, megabytes of JSON that each would read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without keys and AWS settings, and no metadata service that boto3 would ask for them."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def account(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The number of an account with nothing but a default network."""
    with mock_aws():
        yield DEFAULT_ACCOUNT_ID


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: cluster.yaml with its lines filled in, and empty parts to be sent to the nodes."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    text = filled_in()
    (folder / "cluster.yaml").write_text(text)
    for source in yaml.safe_load(text)["file_mounts"].values():
        if not source.startswith("~"):
            (folder / source).mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def access(account: str, checkout: Path) -> list[str]:
    """Roles and security group of the file, made in the account; what was said about them."""
    settings = aws_settings(read_cluster_file(Path("cluster.yaml")))
    return list(make_access(open_account(settings), settings))


@pytest.fixture
def edit(checkout: Path) -> Callable[[str, str], None]:
    """Replaces a text in cluster.yaml, wherever it stands."""

    def replace(old: str, new: str) -> None:
        text = (checkout / "cluster.yaml").read_text()
        assert old in text
        (checkout / "cluster.yaml").write_text(text.replace(old, new))

    return replace
