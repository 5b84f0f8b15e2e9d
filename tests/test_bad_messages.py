"""The table of bad messages over a real connection: the right answer, or the right silence."""

import json
from datetime import UTC, date, datetime

import bad_messages
import trio
from bad_messages import BadMessage, message
from support import server_frame

from ratebridge.app import Dependencies, serve
from ratebridge.errors import FetchOutcome, SourceFailed
from ratebridge.fakes.feed import FeedPeer, serve_feed
from ratebridge.link.address import Address
from ratebridge.rates import RateSheet
from ratebridge.reporting.observer import Observer
from ratebridge.reporting.stats import Stats
from ratebridge.settings import Settings

ROWS = bad_messages.ALL
GOOD = b'"next"'


class NoSource:
    """A source for requests that need none."""

    name = "nobody"
    currencies = every = quota = None

    def asks(self, day: date, today: date) -> str:
        return str(day)

    async def fetch(self, day: date, now: datetime) -> RateSheet:
        raise SourceFailed(FetchOutcome.BAD_BODY, "was asked")


async def replies_up_to_the_next(peer: FeedPeer) -> list[str]:
    """The replies before that to the good request after a row."""
    replies: list[str] = []
    while True:
        text = (await peer.receive()).text
        if f'"id":{GOOD.decode()}' in text:
            assert '"stake":1.5' in text
            return replies
        if text != '{"type":"heartbeat"}':
            replies.append(text)


def is_right(row: BadMessage, replies: list[str]) -> bool:
    if row.outcome in ("dropped", "heartbeat"):
        return replies == []
    if len(replies) != 1 or f'"id":{row.id.decode()}' not in replies[0]:
        return False
    reply = json.loads(replies[0].replace(row.id.decode(), "0", 1), parse_int=str, parse_float=str)
    if row.outcome == "converted":
        return bool(reply["type"] == "message" and reply["payload"]["stake"] == row.word)
    text: str = reply["message"]
    return (
        reply["type"] == "error"
        and text.startswith("Unable to convert stake. Error: ")
        and row.word in text
        and text.isprintable()
        and len(text) < 300
    )


async def test_each_bad_message_gets_its_answer_and_the_connection_lives_on():
    wrong: list[tuple[str, list[str]]] = []
    stop = trio.Event()

    async def beat(peer: FeedPeer) -> None:
        while True:
            await peer.heartbeat()
            await trio.sleep(1)

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        async with trio.open_nursery() as peer_nursery:
            peer_nursery.start_soon(beat, peer)
            for row in ROWS:
                await peer.send_raw(server_frame(row.frame) + server_frame(message(id=GOOD)))
                replies = await replies_up_to_the_next(peer)
                if not is_right(row, replies):
                    wrong.append((row.name, replies))
            stop.set()
            peer_nursery.cancel_scope.cancel()

    peers: list[FeedPeer] = []
    stats = Stats()
    with trio.fail_after(60):
        async with trio.open_nursery() as feed_nursery:
            port = await feed_nursery.start(serve_feed, script, peers)
            settings = Settings(Address("127.0.0.1", port, "/", secure=False))
            dependencies = Dependencies(
                sources=[NoSource()],
                clock=lambda: datetime(2021, 6, 1, tzinfo=UTC),
                observer=Observer(stats=stats),
            )
            await serve(settings, stop, dependencies)
            feed_nursery.cancel_scope.cancel()
    assert wrong == []
    assert len(peers) == 1
    assert stats.dropped.total() == sum(row.outcome == "dropped" for row in ROWS)
    assert stats.refused.total() == sum(row.outcome == "refused" for row in ROWS)
    assert stats.internal_errors == 0
