"""The live view of the demo: some lines of a terminal, redrawn in place.

The view always leaves one row of the terminal free for the cursor, so that nothing scrolls.
"""

import shutil
from collections import deque
from statistics import median
from typing import Final, TextIO

import attrs
import trio

from ..operating.stats import LATENCY_BOUNDS, Stats

REDRAWS: Final = 0.2  # s between redraws
ROWS: Final = 12  # conversions shown

_UP: Final = "\x1b[{}F"  # to the beginning of the line so many lines up
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_SCREEN: Final = "\x1b[H\x1b[2J"  # and move to its top


@attrs.define
class LiveView:
    """The view. `title` names the feed and the rates; `rows` are the last conversions."""

    title: str
    stats: Stats
    rows: deque[str] = attrs.Factory(lambda: deque([""] * ROWS, maxlen=ROWS))

    def lines(self, now: float, height: int = ROWS + 4) -> list[str]:
        """The lines at trio time `now`, at most `height`; conversions are left out first."""
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
        """Redraw until cancelled."""
        size, to_begin = shutil.get_terminal_size(), ""
        while True:
            before, size = size, shutil.get_terminal_size()
            if size != before:  # the terminal has rewrapped the last lines
                to_begin = _CLEAR_SCREEN
            lines = self.lines(trio.current_time(), size.lines - 1)
            picture = "".join(f"{line[: size.columns - 1]}{_CLEAR_LINE}\n" for line in lines)
            terminal.write(to_begin + picture)
            terminal.flush()
            to_begin = _UP.format(len(lines)) if lines else ""
            await trio.sleep(REDRAWS)


def _half_within(stats: Stats) -> str:
    """The median answer time, as a bound of the histogram."""
    counts = stats.latency.counts
    half = sum(counts) / 2
    below = 0
    for bound, count in zip(LATENCY_BOUNDS, counts, strict=False):
        below += count
        if below and below >= half:
            return f"{bound * 1000:g} ms"
    return "-"
