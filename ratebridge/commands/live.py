"""The live view of the demo: a few lines of a terminal, drawn over each other.

However small the terminal is, the view leaves one row free: the cursor stands there between two
pictures, and nothing scrolls.
"""

import shutil
from collections import deque
from statistics import median
from typing import Final, TextIO

import attrs
import trio

from ..operating.stats import LATENCY_BOUNDS, Stats

REDRAWS: Final = 0.2  # s between two pictures: quick to the eye, nothing to the processor
ROWS: Final = 12  # conversions on view

_UP: Final = "\x1b[{}F"  # to the beginning of the line so many lines up
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_SCREEN: Final = "\x1b[H\x1b[2J"  # and to its top


@attrs.define
class LiveView:
    """What the view shows. `title` says where things come from; `rows` are the last conversions."""

    title: str
    stats: Stats
    rows: deque[str] = attrs.Factory(lambda: deque([""] * ROWS, maxlen=ROWS))

    def lines(self, now: float, height: int = ROWS + 4) -> list[str]:
        """The picture at trio time `now`, in at most `height` lines: the last conversions yield."""
        stats = self.stats
        link = "up" if stats.link_up else "down"
        if stats.link_since is not None:
            link += f" for {now - stats.link_since:.0f} s"
        beat = "none yet"
        if stats.heartbeat_at is not None:
            gaps = list(stats.heartbeat_gaps)[1:]
            beat = f"{stats.heartbeats} received"
            beat += f", one in {median(gaps):.2f} s" if gaps else ""
        half = _half_within(stats)
        refused = stats.refused.total()
        head = [
            self.title,
            f"connection {link}   heartbeats {beat}",
            f"answers {stats.converted} converted, {refused} refused, half of them within {half}",
            "",
        ]
        room = max(0, height - len(head))
        return [*head, *list(self.rows)[ROWS - min(ROWS, room) :]][:height]

    async def draw_on(self, terminal: TextIO) -> None:
        """Draw again and again, until cancelled."""
        size, to_begin = shutil.get_terminal_size(), ""
        while True:
            before, size = size, shutil.get_terminal_size()
            if size != before:  # the terminal has wrapped the last picture anew
                to_begin = _CLEAR_SCREEN
            lines = self.lines(trio.current_time(), size.lines - 1)
            picture = "".join(f"{line[: size.columns - 1]}{_CLEAR_LINE}\n" for line in lines)
            terminal.write(to_begin + picture)
            terminal.flush()
            to_begin = _UP.format(len(lines)) if lines else ""
            await trio.sleep(REDRAWS)


def _half_within(stats: Stats) -> str:
    """The bound of the histogram below which half of the answers lie."""
    counts = stats.latency.counts
    half = sum(counts) / 2
    below = 0
    for bound, count in zip(LATENCY_BOUNDS, counts, strict=False):
        below += count
        if below and below >= half:
            return f"{bound * 1000:g} ms"
    return "-"
