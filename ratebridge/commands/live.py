"""The live view of the demo: a few lines of a terminal, drawn over each other."""

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


@attrs.define
class LiveView:
    """What the view shows. `title` says where things come from; `rows` are the last conversions."""

    title: str
    stats: Stats
    rows: deque[str] = attrs.Factory(lambda: deque([""] * ROWS, maxlen=ROWS))

    def lines(self, now: float) -> list[str]:
        """The picture at trio time `now`, always of the same height."""
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
        return [
            self.title,
            f"link {link}   heartbeats {beat}",
            f"answers {stats.converted} converted, {refused} refused, half of them within {half}",
            "",
            *self.rows,
        ]

    async def draw_on(self, terminal: TextIO) -> None:
        """Draw again and again, until cancelled."""
        height = 0
        while True:
            width = shutil.get_terminal_size().columns
            lines = self.lines(trio.current_time())
            picture = "\n".join(f"{line[: width - 1]}{_CLEAR_LINE}" for line in lines)
            terminal.write((_UP.format(height) if height else "") + picture + "\n")
            terminal.flush()
            height = len(lines)
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
