"""The response to an upgrade. What the link makes of bad ones is in test_link."""

import h11
import pytest

from ratebridge.errors import LinkFailed
from ratebridge.link.upgrade import UpgradeResponse

GRANTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: bm8=\r\n\r\n"
)
REFUSED = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 400\r\n\r\n"


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
    response = UpgradeResponse()
    pieces = [REFUSED[at : at + size] for at in range(0, len(REFUSED), size)]
    for piece in pieces[:-1]:
        assert response.feed(piece) is None
    with pytest.raises(LinkFailed) as caught:
        response.feed(pieces[-1])
    assert (caught.value.reason, caught.value.status, caught.value.retry_after) == (
        *("rejected", 503, 7.0),
    )


def test_what_is_no_response_is_an_error_of_h11():
    with pytest.raises(h11.RemoteProtocolError):
        UpgradeResponse().feed(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
