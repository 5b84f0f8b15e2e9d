"""The response to an upgrade: where it ends, and what it says. A link with bad ones: test_link."""

import attrs
import pytest

from ratebridge.errors import LinkFailed
from ratebridge.link.upgrade import UpgradeResponse

SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: bm8=\r\n"
)
GRANTED = SWITCHING + b"\r\n"
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


def test_fed_whole_it_gives_what_stands_behind_the_head():
    assert UpgradeResponse().feed(GRANTED) == b""
    assert UpgradeResponse().feed(GRANTED + b"\x81\x02{}") == b"\x81\x02{}"


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_fed_in_pieces_it_gives_the_same(size):
    response = UpgradeResponse()
    text = GRANTED + b"\x81\x02{}"
    at = 0
    while (behind := response.feed(text[at : at + size])) is None:
        at += size
    assert behind + text[at + size :] == b"\x81\x02{}"


@pytest.mark.parametrize("size", [1, 1000])
def test_a_refusal_is_known_when_its_head_is_there(size):
    failure = failure_of(BUSY + b"Retry-After: 7\r\nContent-Length: 400\r\n\r\n", size)
    assert (failure.reason, failure.detail) == ("rejected", "the peer answered HTTP 503")
    assert (failure.status, failure.retry_after) == (503, 7.0)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (b"HTTP/1.0 401 No\n\n", 401),
        (b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n", 302),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", 200),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 100),
    ],
)
def test_whatever_is_no_101_is_a_refusal(response, status):
    failure = failure_of(response)
    assert (failure.reason, failure.status) == ("rejected", status)
    assert failure.retry_after is None


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"Extensions: permessage-deflate; x=1", "an extension, permessage-deflate"),
        (b"Protocol: chat\x80", "a subprotocol, chat\ufffd"),
    ],
)
def test_what_was_not_offered_is_not_taken(header, what):
    failure = failure_of(SWITCHING + b"Sec-WebSocket-" + header + b"\r\n\r\n")
    assert str(failure) == f"protocol-error: the peer uses {what}, that was not offered"


@attrs.frozen
class Retry:
    """Headers that ask for some patience, and the seconds."""

    name: str
    headers: bytes
    seconds: float | None


DATE = b"Date: Tue, 18 May 2021 21:32:42 GMT\r\n"
RETRIES = [
    Retry("a date", DATE + b"Retry-After: Tue, 18 May 2021 21:33:12 GMT", 30.0),
    Retry("a date that is over", DATE + b"Retry-After: Tue, 18 May 2021 21:00:00 GMT", 0.0),
    Retry("a date seen from nowhere", b"Retry-After: Tue, 18 May 2021 21:33:12 GMT", None),
    Retry("a date of no zone", DATE + b"Retry-After: Tue, 18 May 2021 21:33:12", None),
    Retry("a year too far", DATE + b"Retry-After: Tue, 18 May 99999999999 21:33:12 GMT", None),
    Retry("ages", b"Retry-After: " + b"9" * 400, 999999999.0),
    Retry("nonsense", b"Retry-After: -1\xff", None),
]


@pytest.mark.parametrize("retry", RETRIES, ids=lambda retry: retry.name)
def test_when_to_come_again_is_read_where_it_can_be(retry):
    assert failure_of(BUSY + retry.headers + b"\r\n\r\n").retry_after == retry.seconds
