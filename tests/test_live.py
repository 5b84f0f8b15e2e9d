"""The live view: its lines, and that it redraws in place."""

import io
import re

import pytest
import trio

from ratebridge.commands.live import LiveView
from ratebridge.errors import Refusal
from ratebridge.operating.stats import Stats


def test_the_view_before_anything_has_happened():
    view = LiveView("title", Stats())
    assert view.lines(0.0)[:3] == [
        "title",
        "connection down   heartbeats none yet",
        "answers 0 converted, 0 refused, half of them within -",
    ]


def test_it_shows_the_link_the_heartbeats_and_the_answers():
    stats = Stats(link_up=True, link_since=5.0, heartbeats=3, heartbeat_at=11.0, converted=3)
    stats.heartbeat_gaps.extend((0.01, 1.0, 1.02))
    stats.refused[Refusal.BAD_STAKE] += 1
    for seconds in (0.0002, 0.0002, 0.3, 9.0):
        stats.latency.add(seconds)
    view = LiveView("title", stats)
    view.rows.append("a conversion")
    lines = view.lines(12.0)
    assert lines[1:3] == [
        "connection up for 7 s   heartbeats 3 received, one in 1.01 s",
        "answers 3 converted, 1 refused, half of them within 0.25 ms",
    ]
    assert lines[-1] == "a conversion"


def test_answers_slower_than_every_bound_have_no_figure():
    stats = Stats(heartbeats=1, heartbeat_at=0.0)
    stats.heartbeat_gaps.append(0.01)
    stats.latency.add(60.0)
    lines = LiveView("title", stats).lines(0.0)
    assert lines[1:3] == [
        "connection down   heartbeats 1 received",
        "answers 0 converted, 0 refused, half of them within -",
    ]


class Screen(io.StringIO):
    """A terminal: what its rows show, and what has scrolled off."""

    def __init__(self, rows: int, columns: int, begun: int = 0) -> None:
        super().__init__()
        self.columns = columns
        self.off: list[str] = []
        self.shown = ["$ "] * begun + [""] * (rows - begun)
        self.row, self.column = min(begun, rows - 1), 0

    def write(self, text: str) -> int:
        for move, up, letter in re.findall(r"(\x1b\[(\d*)([A-Z])|\n|[^\x1b\n])", text):
            match letter or move:
                case "F":
                    self.row, self.column = max(0, self.row - int(up)), 0
                case "K":
                    self.shown[self.row] = self.shown[self.row][: self.column]
                case "H":
                    self.row = self.column = 0
                case "J":
                    assert up == "2"
                    self.shown = [""] * len(self.shown)
                case "\n":
                    self.next_row()
                case character:
                    if self.column == self.columns:
                        self.next_row()
                    row = self.shown[self.row].ljust(self.column)
                    self.shown[self.row] = row[: self.column] + character + row[self.column + 1 :]
                    self.column += 1
        return len(text)

    def next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.shown):
            self.off.append(self.shown.pop(0))
            self.shown.append("")
            self.row -= 1

    def resize(self, rows: int, columns: int) -> None:
        """As terminals do it: long rows are wrapped anew, and the last rows stay."""
        rewrapped = [
            row[at : at + columns] for row in self.shown for at in range(0, len(row) or 1, columns)
        ]
        self.columns = columns
        self.shown = [""] * (rows - len(rewrapped)) + rewrapped[-rows:]
        self.row, self.column = rows - 1, 0


SIZES = [(24, 80), (17, 80), (16, 80), (10, 80), (5, 39), (4, 40), (2, 10), (1, 1)]


@pytest.mark.parametrize("begun", [0, 100])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("then", [None, (10, 30), (40, 100)])
async def test_however_small_a_terminal_is_it_shows_one_picture(
    rows, columns, begun, then, autojump_clock, monkeypatch
):
    monkeypatch.setenv("LINES", str(rows))
    monkeypatch.setenv("COLUMNS", str(columns))
    view = LiveView("a title of more than ten columns", Stats())
    screen = Screen(rows, columns, min(begun, rows))
    async with trio.open_nursery() as view_nursery:
        view_nursery.start_soon(view.draw_on, screen)
        for number in range(20):
            view.rows.append(f"conversion {number} " + "x" * (60 - 3 * number))
            await trio.sleep(0.25)
            if number == 10 and then:
                rows, columns = then
                monkeypatch.setenv("LINES", str(rows))
                monkeypatch.setenv("COLUMNS", str(columns))
                screen.resize(rows, columns)
        lines = [line[: columns - 1] for line in view.lines(trio.current_time(), rows - 1)]
        view_nursery.cancel_scope.cancel()
    assert len(lines) == min(16, rows - 1)
    assert rows < 6 or lines[-1].startswith("conversion 19"), "the newest are on view"
    shown = [row for row in screen.shown if row and row != "$ "]
    assert shown == [line for line in lines if line]
    assert set(screen.off) <= {"$ "}, "nothing of ours scrolled off"
