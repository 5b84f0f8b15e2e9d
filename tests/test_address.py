"""What a feed's URI means, row by row."""

import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratebridge.link.address import Address


@pytest.mark.parametrize(
    ("uri", "host", "port", "target", "authority"),
    [
        ("ws://feed.test", "feed.test", 80, "/", "feed.test"),
        ("wss://feed.test", "feed.test", 443, "/", "feed.test"),
        ("wss://feed.test:80/", "feed.test", 80, "/", "feed.test:80"),
        ("WSS://Feed.Test/A", "feed.test", 443, "/A", "feed.test"),
        ("ws://[::1]:8765/ws", "::1", 8765, "/ws", "[::1]:8765"),
        ("wss://[2001:DB8::1]/", "2001:db8::1", 443, "/", "[2001:db8::1]"),
        ("ws://b\u00fccher.test/", "xn--bcher-kva.test", 80, "/", "xn--bcher-kva.test"),
        ("ws://feed.test.:81/", "feed.test.", 81, "/", "feed.test.:81"),
        ("ws://feed.test/a?b=c&d=%20e", "feed.test", 80, "/a?b=c&d=%20e", "feed.test"),
        ("ws://feed.test?b", "feed.test", 80, "/?b", "feed.test"),
        ("ws://feed.test/\u20ac?\u00e9", "feed.test", 80, "/%E2%82%AC?%C3%A9", "feed.test"),
        ("ws://feed.test/a%2Fb//c;d=1@e", "feed.test", 80, "/a%2Fb//c;d=1@e", "feed.test"),
        ('ws://feed.test/"<>\\^`{|}', "feed.test", 80, "/%22%3C%3E%5C%5E%60%7B%7C%7D", "feed.test"),
    ],
)
def test_what_a_uri_means(uri: str, host: str, port: int, target: str, authority: str):
    address = Address.parse(uri)
    assert address == Address(host, port, target, secure=uri.lower().startswith("wss"))
    assert address.authority == authority


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("Aladdin:open%20sesame", b"Aladdin:open sesame"),
        ("user", b"user:"),
        ("%C3%BC:%E2%82%AC:%40", "\u00fc:\u20ac:@".encode()),
    ],
)
def test_user_and_password_become_basic_authentication_and_are_never_shown(userinfo, pair):
    address = Address.parse(f"ws://{userinfo}@feed.test/?token=s3cret")
    assert address.authorization is not None
    assert b64decode(address.authorization.removeprefix("Basic ")) == pair
    assert (address.host, address.authority) == ("feed.test", "feed.test")
    assert not {"s3cret", "sesame", address.authorization} & {*re.split(r"\W", repr(address))}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("", "begins with ws:// or wss://"),
        ("//feed.test/", "begins with ws:// or wss://"),
        ("ws://", "a host"),
        ("ws://feed.test:0/", "a port from 1 to 65535"),
        ("ws://feed.test:65536/", "a valid host and port"),
        ("ws://[not-an-address]/", "a valid host and port"),
        ("ws://feed..test/", "a valid host"),
        ("ws://us%3Aer:s3cret@feed.test/", "user has no colon"),
        ("ws://feed.test/#", "without a fragment"),
        ("ws://feed.test/a b", "without spaces"),
        ("ws://feed.test/\r\nHost: evil.test", "control characters"),
        ("ws://feed.test/\ud800", "control characters"),
    ],
)
def test_a_bad_uri_is_reported_without_quoting_it(uri: str, expected: str):
    with pytest.raises(ValueError, match=r"^a URI ") as caught:
        Address.parse(uri)
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


@given(
    st.text(max_size=20)
    | st.builds(
        "{}://{}{}".format,
        st.sampled_from(["ws", "wss"]),
        st.text("aB1.-_:[]@%\u00e9\u3002", max_size=12),
        st.text('/?#%;\\ \u00e9\n"a', max_size=8),
    )
)
def test_any_text_is_an_address_fit_for_a_request_line_or_refused(uri: str):
    try:
        address = Address.parse(uri)
    except ValueError as problem:
        flaw = str(problem)
        assert flaw.startswith("a URI ")
        return
    assert 1 <= address.port <= 65535
    assert address.host
    request = f"{address.target} {address.authority}"
    assert request.isascii()
    assert request.isprintable()
    assert request.count(" ") == 1
    assert address.target.startswith("/")
