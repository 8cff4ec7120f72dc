"""Every spelling of a private address, and none of a public one, is refused."""

import pytest

from beamclip.ingest.hosts import RefusedURL, host_addresses, is_public, url_refusal


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "168.63.129.16", "::ffff:168.63.129.16", "192.0.0.192", "100.100.100.200", "fec0::1", "feff::1",
        "64:ff9b:1::a00:1", "3fff::1", "fd00:ec2::254",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::10.0.0.1", "::127.0.0.1",
    ],
)  # fmt: skip
def test_addresses_off_the_public_internet_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_addresses_of_the_public_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7F.1", "0177.0.0.1", "017700000001",
        "127.0.0.1.", "%31%32%37.0.0.1", "[::1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
        "[fe80::1%25eth0]", "169.254.169.254", "localhost:9", "LOCALHOST.", "a.localhost", "10.0.0.1:8080",
    ],
)  # fmt: skip
def test_every_spelling_of_a_private_address_is_refused(host: str) -> None:
    assert url_refusal(f"http://{host}/a.png", allow_private=False) == "refused: private address"
    assert url_refusal(f"http://{host}/a.png", allow_private=True) is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/a.png", "refused: scheme ftp"),
        ("file:///etc/passwd", "refused: scheme file"),
        ("data:image/png;base64,AAAA", "refused: scheme data"),
        ("a1b2c3://example.org/a.png", "refused: other scheme"),
        ("http://example.org@127.0.0.1/", "refused: credentials in the URL"),
        ("http://127.0.0.1@example.org/", "refused: credentials in the URL"),
        ("http:///a.png", "malformed URL"),
        ("http://example.org:port/", "malformed URL"),
        ("http://[::1/", "malformed URL"),
        ("no url", "malformed URL"),
        ("", "malformed URL"),
        (None, "malformed URL"),
    ],
)
@pytest.mark.parametrize("allow_private", [False, True])
def test_what_is_no_plain_web_address_is_refused(url: str | None, reason: str, allow_private: bool) -> None:
    assert url_refusal(url, allow_private=allow_private) == reason


def test_public_looking_urls_pass() -> None:
    for url in ("https://example.org/a.png", "HTTP://8.8.8.8:8080/x", "http://[2606:4700::1111]/"):
        assert url_refusal(url, allow_private=False) is None


@pytest.mark.parametrize("port", ["22", "25", "3306", "6379", "9200", "0", "65535"])
def test_ports_on_which_no_web_server_listens_are_refused_by_one_reason(port: str) -> None:
    for url in (f"http://example.org:{port}/a.png", f"https://8.8.8.8:{port}/a.png"):
        assert url_refusal(url, allow_private=False) == "refused: port"
        assert url_refusal(url, allow_private=False, ports=(int(port),)) is None
        assert url_refusal(url, allow_private=True) is None


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "::1"])
def test_names_and_spellings_that_resolve_to_loopback_are_refused(host: str) -> None:
    with pytest.raises(RefusedURL, match="private address"):
        host_addresses(host, 80, allow_private=False)


def test_name_that_also_resolves_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(2, 1, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(RefusedURL):
        host_addresses("rebinding.example", 80, allow_private=False)
