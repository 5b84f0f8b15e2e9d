"""Which proxy a connection takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.errors import BadSettings
from ratebridge.proxies import Proxies, Proxy

WEB = Proxy("http", "proxy.test", 3128)
OTHER = Proxy("socks5h", "other.test", 1080)


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://proxy.test:3128/", WEB),
        ("proxy.test:3128", WEB),
        ("http://proxy.test", Proxy("http", "proxy.test", 80)),
        ("https://proxy.test", Proxy("https", "proxy.test", 443)),
        ("socks5h://other.test", OTHER),
        ("socks5://[::1]:9", Proxy("socks5", "::1", 9)),
        ("http://a%40b:s3%3Acret@proxy.test", Proxy("http", "proxy.test", 80, "a@b", "s3:cret")),
    ],
)
def test_what_a_proxys_url_means(url, proxy):
    assert Proxy.parse(url) == proxy
    assert "s3" not in repr(proxy)


@pytest.mark.parametrize(
    "url", ["socks4://a", "http://:1", "http://a:0", "http://[::1", "http://\u20ac", "http://a\x01"]
)
def test_a_proxy_that_is_none_is_told_without_its_password(url):
    environ = {"HTTPS_PROXY": url.replace("//", "//user:s3cret@"), "ALL_PROXY": "ftp://a"}
    with pytest.raises(BadSettings) as caught:
        Proxies.read(environ)
    names = [problem.partition(":")[0] for problem in caught.value.args]
    assert names == ["ALL_PROXY", "HTTPS_PROXY"]
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "scheme", "proxy"),
    [
        ({}, "http", None),
        ({"HTTP_PROXY": "proxy.test:3128"}, "ws", WEB),
        ({"HTTP_PROXY": "proxy.test:3128"}, "wss", None),
        ({"https_proxy": "proxy.test:3128"}, "wss", WEB),
        ({"HTTPS_PROXY": "a", "https_proxy": "proxy.test:3128"}, "https", WEB),
        ({"ALL_PROXY": "socks5h://other.test"}, "ws", OTHER),
        ({"all_proxy": "socks5h://other.test", "HTTPS_PROXY": "a"}, "ws", OTHER),
        ({"ALL_PROXY": "socks5h://other.test", "HTTPS_PROXY": "proxy.test:3128"}, "wss", WEB),
        ({"ALL_PROXY": "socks5h://other.test", "NO_PROXY": "a, *"}, "wss", None),
        ({"HTTP_PROXY": " "}, "http", None),
    ],
)
def test_the_environment_says_which_proxy_a_scheme_takes(environ, scheme, proxy):
    assert Proxies.read(environ).find(scheme, "feed.test", 80) == proxy


@pytest.mark.parametrize(
    ("entry", "covered", "not_covered"),
    [
        ("feed.test", ["feed.test", "a.feed.test", "FEED.test", "feed.test."], ["myfeed.test"]),
        (".Feed.test", ["feed.test", "a.feed.test"], ["test"]),
        ("*.feed.test", ["feed.test", "a.feed.test"], ["test"]),
        ("feed.test:81", [], ["feed.test"]),
        ("192.0.2.1:80", ["192.0.2.1"], ["192.0.2.10"]),
        ("192.0.2.9/24", ["192.0.2.1"], ["192.0.3.1", "feed.test", "::1"]),
        ("::1/128", ["::1"], ["::2", "127.0.0.1"]),
        ("fe80::/10", ["fe80::1", "febf::1"], ["fec0::1"]),
        ("[::1]", ["::1"], ["::2"]),
        ("[::1]:8080", [], ["::1"]),
        ("a.test  b.test,,c.test", ["a.test", "b.test", "c.test"], ["d.test"]),
    ],
)
def test_what_needs_no_proxy(entry, covered, not_covered):
    proxies = Proxies.read({"ALL_PROXY": "proxy.test:3128", "no_proxy": entry})
    assert proxies.ignored == ()
    assert [proxies.find("ws", host, 80) for host in covered] == [None] * len(covered)
    assert [proxies.find("ws", host, 80) for host in not_covered] == [WEB] * len(not_covered)


@pytest.mark.parametrize("entry", ["http://a", "[::1", "a:b", "1.2.3.4/33", "user@a", "a*b", "*."])
def test_an_exception_that_means_nothing_is_one_to_be_warned_of_and_the_rest_counts(entry):
    proxies = Proxies.read({"HTTP_PROXY": "proxy.test:3128", "NO_PROXY": f"{entry},feed.test"})
    assert proxies.ignored == (entry,)
    assert proxies.find("ws", "feed.test", 80) is None
    assert Proxies.read({"NO_PROXY": entry}).ignored == (), "without a proxy nothing is"


@given(st.text(max_size=30), st.text("[]:/.*%@a1", max_size=12))
def test_no_exception_ends_a_command(text, entry):
    proxies = Proxies.read({"ALL_PROXY": "proxy.test:3128", "NO_PROXY": f"{text},{entry}"})
    assert proxies.find("wss", "::1", 443) in (None, WEB)
