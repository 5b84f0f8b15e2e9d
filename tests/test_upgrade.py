"""What an upgrade brings, and its response. A link with bad ones: test_link."""

import pytest
import wsproto

from ratebridge.errors import LinkFailed
from ratebridge.link.address import Address
from ratebridge.link.upgrade import (
    UpgradeOptions,
    UpgradeResponse,
    parse_headers,
    parse_subprotocol,
)

SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: bm8=\r\n"
)
GRANTED = SWITCHING + b"\r\n"
HINTS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\n"


def failure_of(response: bytes, size: int = 10_000) -> LinkFailed:
    """How a response fails, whose last piece completes its head."""
    reader = UpgradeResponse()
    *pieces, last = (response[at : at + size] for at in range(0, len(response), size))
    for piece in pieces:
        assert reader.feed(piece) is None
    with pytest.raises(LinkFailed) as caught:
        reader.feed(last)
    return caught.value


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 102 \r\n\r\n", HINTS * 2], ids=len)
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_fed_in_pieces_it_gives_the_same_and_interim_responses_are_passed_over(size, before):
    response = UpgradeResponse()
    text = before + GRANTED + b"\x81\x02{}"
    at = 0
    while (behind := response.feed(text[at : at + size])) is None:
        at += size
    assert behind + text[at + size :] == b"\x81\x02{}"


@pytest.mark.parametrize(
    "connection", ["Upgrade", "keep-alive, Upgrade", "Upgrade|keep-alive", "keep-alive|upgrade"]
)
def test_wsproto_takes_the_head_however_the_connection_is_spelt(connection):
    ours = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    asked = ours.send(wsproto.events.Request("feed.test", "/")).decode()
    lines = [f"CONNECTION: {value}" for value in connection.split("|")]
    key = asked.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
    head = ["HTTP/1.1 101 Go", *lines, "upgrade: WebSocket"]
    response = UpgradeResponse()
    token = wsproto.utilities.generate_accept_token(key.encode())
    last = f"sec-websocket-accept: {token.decode()}"
    assert response.feed("\r\n".join([*head, last, "", ""]).encode()) == b""
    ours.receive_data(response.head)
    assert [type(event) for event in ours.events()] == [wsproto.events.AcceptConnection]


@pytest.mark.parametrize("size", [1, 1000])
def test_a_refusal_is_known_when_its_head_is_there(size):
    failure = failure_of(HINTS + BUSY + b"Retry-After: 7\r\nContent-Length: 400\r\n\r\n", size)
    assert (failure.reason, failure.detail) == ("rejected", "the peer answered HTTP 503")
    assert (failure.status, failure.retry_after) == (503, 7.0)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (b"HTTP/1.0 401 No\n\n", 401),
        (b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n", 302),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 403 No\r\n\r\n", 403),
    ],
)
def test_whatever_is_no_101_is_a_refusal(response, status):
    failure = failure_of(response)
    assert (failure.reason, failure.status) == ("rejected", status)
    assert failure.retry_after is None


def test_a_subprotocol_that_was_not_offered_is_not_taken():
    failure = failure_of(SWITCHING + b"Sec-WebSocket-Protocol: chat\x80\r\n\r\n")
    what = "a subprotocol, chat\ufffd, that was not offered"
    assert str(failure) == f"protocol-error: the peer uses {what}"


def test_the_subprotocol_that_was_offered_is_taken_and_none_need_be():
    chosen = SWITCHING + b"Sec-WebSocket-Protocol: rates.v1\r\n\r\n"
    assert UpgradeResponse("rates.v1").feed(chosen) == b""
    assert UpgradeResponse("rates.v1").feed(GRANTED) == b""
    with pytest.raises(LinkFailed, match=r"a subprotocol, rates.v1, that was not offered"):
        UpgradeResponse("rates.v2").feed(chosen)


# What an upgrade brings.


def test_the_lines_of_a_text_are_headers_and_user_and_password_are_one_more():
    text = "X-Token: s3cret=; q, a\r\n\n  \nauthorization:Bearer x \nEmpty:"
    headers = (b"X-Token", b"s3cret=; q, a"), (b"authorization", b"Bearer x"), (b"Empty", b"")
    options = UpgradeOptions(parse_headers(text))
    assert options.headers == headers
    assert options.extra_headers(Address.parse("ws://feed.test/")) == [*headers]
    basic = options.extra_headers(Address.parse("ws://a:b@feed.test/"))[-1]
    assert basic == (b"Authorization", b"Basic YTpi")
    assert "s3cret" not in repr(options)


@pytest.mark.parametrize(
    "line",
    [
        *("s3cret", ": s3cret", "a b: s3cret", " a: s3cret", "a\u00e9: s3cret", "a: s3cret\u00e9"),
        *("a: s3cret\0", "a: s3cret\rb: c", "a: s3cret\x0bb: c", "Host: s3cret"),
        *("CONNECTION: s3cret", "upgrade: s3cret", "Sec-WebSocket-Key: s3cret"),
        *("Content-Length: s3cret", "Transfer-Encoding: s3cret"),
    ],
)
def test_what_is_no_header_of_ours_to_send_is_refused_without_quoting_it(line):
    with pytest.raises(ValueError, match=r"; line 2 is ") as caught:
        parse_headers(f"good: one\n{line}\n")
    assert "s3cret" not in str(caught.value)


def test_a_subprotocol_is_one_name():
    assert parse_subprotocol("rates.v1") == "rates.v1"
    for text in ("", "a b", "a,b", "a\n", "\u00e9", '"a"'):
        with pytest.raises(ValueError, match="the name of one subprotocol"):
            parse_subprotocol(text)


DATE = b"Date: Tue, 18 May 2021 21:32:42 GMT\r\n"


def test_when_to_come_again_may_be_a_date():
    then = b"Retry-After: Tue, 18 May 2021 21:33:12 GMT\r\n\r\n"
    assert failure_of(BUSY + DATE + then).retry_after == 30.0
    assert failure_of(BUSY + b"Retry-After: -1\xff\r\n\r\n").retry_after is None
