"""The opener behind every download, against servers on this machine that behave as badly as servers can."""

import datetime
import functools
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import OpenerDirector

import pytest
from support.hostile_server import REASONS, TLS, HostileServer, hostile_server

from beamclip.ingest import opener as fetch
from beamclip.ingest.body_memory import BodyMemory
from beamclip.ingest.hosts import host_addresses
from beamclip.ingest.opener import FetchRules, build_guarded_opener

BODY = bytes(range(256)) * 4096
Get = Callable[..., str | bytes]


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile_server(BODY) as started:
        yield started


@pytest.fixture
def get(tmp_path: Path) -> Get:
    """get(url, seconds=5, memory=..., **rules): the body, or the message of the failure."""
    standard = BodyMemory(bodies=64)

    @functools.cache  # each one reads the certificate store
    def opener_of(memory: BodyMemory, **rules: Any) -> OpenerDirector:
        return build_guarded_opener(FetchRules(turns=tmp_path / "turns", **rules), memory)

    def fetched(
        url: str, seconds: float = 5.0, memory: BodyMemory = standard, **rules: object
    ) -> str | bytes:
        try:
            with opener_of(memory, **{"allow_private_hosts": True, **rules}).open(
                url, timeout=seconds
            ) as response:
                body: bytes = response.read()
                memory.drop_body(len(body))
                return body
        except HTTPError as error:
            return f"HTTP {error.code}"
        except Exception as error:
            return str(error)

    return fetched


@pytest.mark.slow
def test_every_hostile_server_is_left_in_time_for_its_reason(
    server: HostileServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MAX_BODY_BYTES", 1 << 21)

    def reason(kind: str) -> str | bytes:
        site = server.site.replace("http:", "https:") if kind == TLS else server.site
        return get(f"{site}/{kind}/1", seconds=1.0 if REASONS[kind] == "timed out" else 60.0)

    with ThreadPool(len(REASONS)) as pool:
        assert dict(zip(REASONS, pool.map(reason, REASONS), strict=True)) == REASONS
    assert get(f"{server.site}/good/1") == BODY


def test_name_look_up_that_hangs_ends_with_the_deadline(
    server: HostileServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(
        fetch, "host_addresses", lambda host, port, allow_private: answer.wait(60) and ["127.0.0.1"]
    )
    url = server.site.replace("127.0.0.1", "slow.example")
    assert get(f"{url}/good/1", seconds=0.3) == "timed out"
    answer.set()
    assert get(f"{url}/good/1") == BODY


@pytest.mark.slow
def test_small_retry_after_is_waited_for_and_a_long_one_is_not(server: HostileServer, get: Get) -> None:
    assert get(f"{server.site}/429-once/1") == BODY
    assert get(f"{server.site}/429-once/2", seconds=0.5) == "HTTP 429"
    assert server.visits == {"/429-once/1": 2, "/429-once/2": 1}


def test_host_that_refuses_everyone_is_asked_no_more(server: HostileServer, get: Get) -> None:
    assert {get(f"{server.site}/429-for-long/{n}") for n in range(30)} == {"HTTP 429"}
    assert server.visits.total() == 5


def test_one_refused_url_does_not_close_its_host(server: HostileServer, get: Get) -> None:
    for n in range(10):
        assert get(f"{server.site}/429-for-long/{n}") == "HTTP 429"
        assert get(f"{server.site}/good/{n}") == BODY


@pytest.mark.slow
def test_host_gets_no_more_requests_at_a_time_than_allowed(get: Get) -> None:
    with hostile_server(BODY, delay_s=0.02) as server, ThreadPool(16) as pool:
        answers = pool.map(lambda n: get(f"{server.site}/good/{n}", per_host=3), range(48))
        assert answers == [BODY] * 48
        assert server.busiest == 3


def test_large_body_waits_for_memory_and_gives_it_back(server: HostileServer, get: Get) -> None:
    memory = BodyMemory(bodies=1024)
    assert memory.share < len(BODY)
    memory.take(fetch.MAX_BODY_BYTES, 0)
    assert get(f"{server.site}/good/1", seconds=0.3, memory=memory) == "no memory free for a large body"
    threading.Timer(0.2, memory.give_back, [fetch.MAX_BODY_BYTES]).start()
    assert get(f"{server.site}/good/1", memory=memory) == BODY
    assert get(f"{server.site}/cut-body/1", memory=memory) == "incomplete body"
    memory.take(fetch.MAX_BODY_BYTES, 0)


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/secret/a", "http://localhost:{port}/secret/b"])
def test_redirect_to_a_private_address_is_refused(
    server: HostileServer, get: Get, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    # The only stand-in: a name server that places one public name on this machine, where the test site is.
    monkeypatch.setattr(
        fetch, "host_addresses",
        lambda host, port, **rules: (
            ["127.0.0.1"] if host == "public.example" else host_addresses(host, port, **rules)
        ),
    )  # fmt: skip
    port = server.server_address[1]
    rules = {"allow_private_hosts": False, "ports": (port,)}
    server.locations["/moved"] = target.format(port=port)
    assert get(f"http://public.example:{port}/a", **rules) == BODY
    assert get(f"http://public.example:{port}/moved", **rules) == "refused: private address"
    assert get(f"http://public.example:{port}/a", allow_private_hosts=False) == "refused: port"
    assert not [path for path in server.visits if path.startswith("/secret/")]


def test_guard_ignores_proxies_of_the_environment(
    server: HostileServer, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.site)
    assert get("http://localhost/proxied", allow_private_hosts=False) == "refused: private address"
    assert not server.visits
    assert get("http://anywhere.example/proxied") == BODY


def test_https_is_read_whole_from_a_trusted_server_and_refused_from_another(
    get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "localhost.pem"
    pem.write_bytes(self_signed())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with hostile_server(BODY, tls=context) as server:
        assert get(f"https://127.0.0.1:{server.server_address[1]}/a") == "TLS error"
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        trusting = BodyMemory(bodies=64)
        assert get(f"https://127.0.0.1:{server.server_address[1]}/a", memory=trusting) == BODY


def self_signed() -> bytes:
    """Key and certificate of 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
        )
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(encoding, *plain) + certificate.public_bytes(encoding)
