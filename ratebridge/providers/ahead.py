"""Midnight: the rates of the new day, and of the one that has ended, before they are asked for.

At any other time the requests themselves renew what they use, see `RateChain`. But at midnight UTC
the quotes of the running day end, all at once. So the sources whose rates of that day were in use
are asked for both days then; and once more for the ended one a minute later, when it has ended by
all clocks that are right, and its rates are final.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import trio

from ..rates import CLOCK_SLACK, midnight_after
from .chain import RateChain

LOOK_EVERY: Final = 15.0  # s between looks at the wall clock, at most


async def fetch_at_midnight(chain: RateChain, utc_now: Callable[[], datetime]) -> None:
    """Fetch what will be asked for, until cancelled; and watch the wall clock."""
    today = utc_now().date()
    while True:
        to_midnight = midnight_after(today) - utc_now()
        await trio.sleep(min(LOOK_EVERY, max(0.0, to_midnight.total_seconds()) + 0.001))
        chain.watch_clock()
        before, today = today, utc_now().date()
        if today == before + timedelta(days=1):
            names = chain.providers_of(before)
            in_use = [source for source in chain.sources if source.name in names]
            for source in in_use:
                chain.fetch_in_background(source, today)
                chain.fetch_in_background(source, before)
            # The wall clock may be slewed so much. A request that comes meanwhile asks first, and
            # then the call is the same.
            await trio.sleep(CLOCK_SLACK.total_seconds() + 0.05)
            for source in in_use:
                chain.fetch_in_background(source, before)
