"""URLs as browsers send them. Expected values: WHATWG's URL standard, as Chrome and Firefox show them."""

import pytest

from beamclip.ingest.web_address import web_address


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://example.org/a picture.jpg", "http://example.org/a%20picture.jpg"),
        ("  http://example.org/a\n.jpg\t", "http://example.org/a.jpg"),
        ("http://example.org/é?q=ü b#x", "http://example.org/%C3%A9?q=%C3%BC%20b"),
        ("http://example.org/a%20b%zz", "http://example.org/a%20b%zz"),
        ("http://example.org/a|b[1]'\"{}?a='|{}", "http://example.org/a|b[1]'%22%7B%7D?a=%27|{}"),
        ("https://Bücher.example:8080/", "https://xn--bcher-kva.example:8080/"),
        ("https://faß.de/", "https://xn--fa-hia.de/"),
        ("http://例え.テスト/", "http://xn--r8jz45g.xn--zckzah/"),
        ("http://💩.la/", "http://xn--ls8h.la/"),
        ("http://①②⑦.0.0.1/", "http://127.0.0.1/"),
        ("http://a.example\\@127.0.0.1/", "http://a.example/@127.0.0.1/"),
        ("http://[::1]:80/é", "http://[::1]:80/%C3%A9"),
        ("http://example.org?é", "http://example.org?%C3%A9"),
        ("ftp://exämple.org/a b", "ftp://exämple.org/a b"),
        ("", ""),
    ],
)
def test_url_is_what_a_browser_asks_for(url: str, sent: str) -> None:
    assert web_address(url) == sent
