"""Fetching ahead: no request waits for a table that was in use.

A table in use is refreshed before it ends. Today's table of the first source is fetched
at the start, and the new day's at midnight, with that of the day before if it was in
use. Only what the budgets can spare is fetched, see `RateChain.fetch_ahead`.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import trio

from .chain import RateChain
from .source import Source

START_PAUSE: Final = 2.0  # s before today's table is fetched, so that connecting comes first
LONGEST_TICK: Final = 15.0  # s between polls for tables to refresh: at most four calls a minute
TICKS: Final = 100  # polls in the life of a short-lived table


async def fetch_ahead(chain: RateChain, utc_now: Callable[[], datetime]) -> None:
    """Fetch what will be asked for, until cancelled; and watch the wall clock."""
    await trio.sleep(START_PAUSE)
    today = utc_now().date()
    _fetch_missing(chain, chain.sources[0], today, today, trio.current_time())
    tick = min(LONGEST_TICK, max(chain.tables.life / TICKS, 0.01))
    while True:
        await trio.sleep(min(tick, _to_midnight(utc_now()) + 0.001))
        chain.watch_clock()
        now, before, today = trio.current_time(), today, utc_now().date()
        _refresh(chain, today, now)
        if today != before:
            _fetch_new_day(chain, today, now)


def _to_midnight(now: datetime) -> float:
    midnight = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
    return (midnight - now).total_seconds()


def _refresh(chain: RateChain, today: date, now: float) -> None:
    """Refresh one table of each source at a time, to avoid bursts."""
    refreshed: set[str] = set()
    for table in chain.tables.due_ahead(today, now):
        if table.provider in refreshed:
            continue
        refreshed.add(table.provider)
        chain.tables.postpone(table, now)
        place = [source.name for source in chain.sources].index(table.provider)
        for source in chain.sources[:place]:
            # It may have recovered; it is used when this table ends.
            _fetch_missing(chain, source, table.day, today, now)
        chain.fetch_ahead(chain.sources[place], table.day)


def _fetch_new_day(chain: RateChain, today: date, now: float) -> None:
    ended = today - timedelta(days=1)
    for source in chain.sources:
        used = chain.tables.used_since(source.name, ended, now - chain.tables.life)
        if used or source is chain.sources[0]:
            _fetch_missing(chain, source, today, today, now)
        if used:
            _fetch_missing(chain, source, ended, today, now)


def _fetch_missing(chain: RateChain, source: Source, day: date, today: date, now: float) -> None:
    """Fetch a table, unless a request has brought it already."""
    if not chain.tables.has_live(source.name, day, today, now):
        chain.fetch_ahead(source, day)
