"""The live view: what it says, and that it draws over itself."""

import io

import trio

from ratebridge.commands.live import LiveView
from ratebridge.operating.stats import Stats


def test_before_anything_has_happened_it_says_so():
    view = LiveView("title", Stats())
    assert view.lines(0.0)[:3] == [
        "title",
        "link down   heartbeats none yet",
        "answers 0 converted, 0 refused, half of them within -",
    ]


def test_it_shows_the_link_the_heartbeats_and_the_answers():
    stats = Stats(link_up=True, link_since=5.0, heartbeats=3, heartbeat_at=11.0, converted=3)
    stats.heartbeat_gaps.extend((0.01, 1.0, 1.02))
    stats.refused["bad-stake"] += 1
    for seconds in (0.0002, 0.0002, 0.3, 9.0):
        stats.latency.add(seconds)
    view = LiveView("title", stats)
    view.rows.append("a conversion")
    lines = view.lines(12.0)
    assert lines[1:3] == [
        "link up for 7 s   heartbeats 3 received, one in 1.01 s",
        "answers 3 converted, 1 refused, half of them within 0.25 ms",
    ]
    assert lines[-1] == "a conversion"


def test_answers_slower_than_every_bound_have_no_figure():
    stats = Stats(heartbeats=1, heartbeat_at=0.0)
    stats.heartbeat_gaps.append(0.01)
    stats.latency.add(60.0)
    lines = LiveView("title", stats).lines(0.0)
    assert lines[1:3] == [
        "link down   heartbeats 1 received",
        "answers 0 converted, 0 refused, half of them within -",
    ]


async def test_each_picture_is_drawn_over_the_one_before(autojump_clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    view = LiveView("a title that is longer than the terminal", Stats())
    terminal = io.StringIO()
    with trio.move_on_after(0.3):
        await view.draw_on(terminal)
    first, second = terminal.getvalue().split("\x1b[16F")
    assert first == second
    assert first.splitlines()[0] == "a title that is lon\x1b[K"
