"""Addresses as they are written down."""

import pytest

from beamclip.addresses import lacks_secrets, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        # AWS keys hold slashes.
        ("s3://KEY:a/b+c@bucket/x", "s3://***@bucket/x"),
        ("https://user:p@ss@host:80/x", "https://***@host:80/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://h/x?X-Amz-Credential=A&X-Amz-Signature=B", "https://h/x?***"),
        (
            "https://h.blob.core.windows.net/c/x?sv=2022&se=2026&sig=B",
            "https://h.blob.core.windows.net/c/x?***",
        ),
        ("https://h/x?page=2&access_token=B", "https://h/x?***"),
        ("simplecache::https://user:pw@h/x", "simplecache::https://***@h/x"),
        # As Path() leaves it.
        ("https:/user:pw@h/x", "https:/***@h/x"),
    ],
)
def test_what_lets_a_reader_in_is_left_out_with_a_mark(address: str, shown: str) -> None:
    assert without_secrets(address) == shown
    assert lacks_secrets(shown)
    assert not lacks_secrets(address)
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/x@y",
        "https://host:9000/x@y/z?page=2",
        "https://[::1]:80/x@y",
        "open_clip:ViT-B-16/openai",
        "file:///a:b/c@d",
        "/mnt/a?b/c@d",
    ],
)
def test_an_address_without_secrets_stays_as_it_is(address: str) -> None:
    assert without_secrets(address) == address
    assert not lacks_secrets(address)


def test_every_address_in_a_text_is_cleared() -> None:
    text = "no answer from 'https://h/x?sig=9', nor \"s3://a:b@c/d\".\nsee https://h/?id=3"
    assert (
        without_secrets(text)
        == "no answer from 'https://h/x?***', nor \"s3://***@c/d\".\nsee https://h/?id=3"
    )
