"""The soak of abuse.py: a fault every few seconds for as long as one likes, and the balance.

A request is "safe" if it was sent half a second or more before a fault of its link; of the others
it, or its reply, may be lost. Each safe one is answered exactly once, on whichever link, or logged
as undelivered. None is answered twice. Only a fault ends a link, and a stall of the service
(SIGSTOP for 3 s) is none.
"""

import json
import random
import signal
import struct
from collections import Counter
from math import inf
from typing import Final

import attrs
import trio
from abuse_scene import CLOSE, FIRST_DAY, RATE, Cost, Scene, read_frames, request, upgrade
from support import BEAT, server_frame

from ratebridge.fakes.feed import FeedGone, FeedPeer

MARGIN: Final = 0.5  # s before a fault for which a request may still be on its way
GROWTH: Final = 64.0  # MiB
RESET: Final = struct.pack("ii", 1, 0)  # on, 0 s: a close is a RST
FAULTS: Final = (
    *("reset", "reset", "fin", "close", "close", "garbage", "silence", "unread"),
    *("refused", "stall"),
)


@attrs.define(eq=False)
class Soak:
    """The feed, and its books: what it asked, by id, when and on which link; what came of it."""

    scene: Scene
    chance: random.Random
    over: bool = False  # no more faults, no more requests
    refuses: bool = False  # the next link
    asked: dict[str, tuple[float, int]] = attrs.Factory(dict)
    fault: str = ""  # of the present link
    failed: list[float] = attrs.Factory(list)  # when each link did
    answered: Counter[str] = attrs.Factory(Counter)
    faults: Counter[str] = attrs.Factory(Counter)
    alone: list[int] = attrs.Factory(list)  # links that ended without a fault

    async def play(self, peer: FeedPeer) -> None:
        """The script of a connection."""
        if self.refuses:
            self.refuses = False
            await peer.reject(503)
            return
        await upgrade(peer)
        link, self.fault = len(self.failed), ""
        self.failed.append(inf)
        try:
            async with trio.open_nursery() as nursery:
                for task in (self.ask, self.beat, self.read):
                    nursery.start_soon(task, peer, link)
                await self.draw_fault()
                self.failed[link] = trio.current_time()
                await self.harm(peer)
                nursery.cancel_scope.cancel()
        except* FeedGone:
            if self.failed[link] == inf and not self.over:
                self.alone.append(link)

    async def ask(self, peer: FeedPeer, link: int) -> None:
        while not self.over and self.fault != "silence":
            name = f"{len(self.asked)}"
            self.asked[name] = trio.current_time(), link
            await peer.send_raw(request(name, "EUR", FIRST_DAY))
            await trio.sleep(self.chance.expovariate(RATE))

    async def beat(self, peer: FeedPeer, _link: int) -> None:
        while self.fault not in ("silence", "unread"):
            await peer.send_raw(server_frame(BEAT))
            await trio.sleep(1)

    async def read(self, peer: FeedPeer, _link: int) -> None:
        def hear(_first: int, payload: bytes) -> None:
            if payload[:1] == b"{" and payload != BEAT:
                self.answered[json.loads(payload)["id"]] += 1

        while self.fault != "unread":
            await read_frames(peer, hear)

    async def draw_fault(self) -> None:
        """Let the link live, through stalls of the service, until a fault is due."""
        while not self.fault:
            await trio.sleep(self.chance.uniform(1, 8))
            if self.over:
                await trio.sleep_forever()
            drawn = self.chance.choice(FAULTS)
            self.faults[drawn] += 1
            if drawn != "stall":
                self.fault = drawn
                return
            for number in (signal.SIGSTOP, signal.SIGCONT):
                self.scene.processes[0].send_signal(number)
                await trio.sleep(3)

    async def harm(self, peer: FeedPeer) -> None:
        """Do what the fault is; the link is closed when this returns."""
        self.refuses = self.fault == "refused"
        if self.fault in ("reset", "refused") and isinstance(peer.stream, trio.SocketStream):
            peer.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, RESET)
        elif self.fault != "fin":
            if self.fault == "close":
                code = self.chance.choice((1000, 1001, 1011, 1012, 1013))
                await peer.send_raw(server_frame(code.to_bytes(2), CLOSE))
            elif self.fault == "garbage":
                await peer.send_raw(b"\xff" + self.chance.randbytes(200))
            await trio.sleep(6)  # the service leaves before


async def soak(scene: Scene, minutes: float, seed: int) -> None:
    """Play faults, for which `seed` is the chance; the balance stands in the findings."""
    feed = Soak(scene, random.Random(seed))
    scene.script = feed.play
    process = await scene.start()
    await trio.sleep(min(60.0, 15 * minutes))
    before = Cost.of(process.pid)
    for minute in range(round(minutes)):
        await trio.sleep(60)
        now = Cost.of(process.pid)
        figures = f"{len(feed.asked)} requests, {feed.faults.total()} faults"
        print(f"{minute + 1:3} min {now.memory:6.1f} MiB  {figures}", flush=True)
    feed.over = True
    await trio.sleep(8)  # what was broken last is mended, and what is left is answered
    told = [event.get("id") for event in scene.log if event["event"] == "reply.undelivered"]
    safe = [name for name, (at, link) in feed.asked.items() if at < feed.failed[link] - MARGIN]
    lost = [name for name in safe if not feed.answered[name] and name not in told]
    twice = [name for name, count in feed.answered.items() if count > 1 or name not in feed.asked]
    scene.expect(not lost, f"of {len(safe)} safe requests lost: {lost[:9]}", "none")
    scene.expect(not twice, f"answered twice, or never asked: {twice[:9]}", "none")
    scene.expect(not feed.alone, f"links that ended without a fault: {feed.alone[:9]}", "none")
    grown = Cost.of(process.pid).memory - before.memory
    scene.expect(grown < GROWTH, f"{grown:.1f} MiB more than after the start", "less than 64")
