"""What is answered depends on the day and on the sources, and on no other request.

A script asks for rates in any order, with restarts, and with sheets that are dropped and fetched
again in between. Each request gets what it gets when it is asked alone, of a service that has just
started.
"""

from datetime import date, timedelta
from decimal import Decimal
from functools import cache
from zlib import crc32

import trio
from hypothesis import given
from hypothesis import strategies as st
from rate_bench import open_bench
from support import virtual_clock

from ratebridge.errors import NoRate
from ratebridge.history import embedded
from ratebridge.rates import Quote, RateSheet

UNJUDGED = {"UAH": 33, "IRR": 49_337}  # units for one euro: the ECB has never quoted them
JUDGED = ("USD", "CZK", "TRY")
STEP = date(2021, 5, 19), 27  # from that day on the rial is worth so much less
FIRST = date(2021, 5, 10)
DAYS = [FIRST + timedelta(days=number) for number in range(0, 30, 3)]


class Bank:
    """A source with wrong rows, the same whenever it is asked; a month a call, or a day."""

    quota = every = None

    def __init__(self, name, seed, currencies=None):
        self.name = name
        self.currencies = currencies
        self._seed = seed
        self._monthly = crc32(f"{seed}{name}".encode()) % 2

    def asks(self, day, today):
        return f"{day:%Y-%m}" if self._monthly else str(day)

    async def fetch(self, day, now):
        first = last = day
        if self._monthly:
            first = day.replace(day=1)
            last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
        margin = timedelta(days=5 * self._monthly)
        span = (last - first + 2 * margin).days + 1
        rows = {
            known: self._rows(known)
            for known in (first - margin + timedelta(n) for n in range(span))
        }
        return RateSheet(self.name, self.asks(day, day), first, last, rows, now)

    def _rows(self, day):
        found = {}
        for code in (*JUDGED, *UNJUDGED):
            luck = crc32(f"{self._seed} {self.name} {code} {day}".encode()) % 12
            near = embedded().nearest(code, day)
            units = Decimal(UNJUDGED[code] if near is None else f"{near[0]:.6g}")
            if code == "IRR" and day >= STEP[0]:
                units *= STEP[1]
            if luck > 1:  # or there is no row
                found[code] = Quote(units * 10 if luck == 2 else units)
        return found


async def ask_in_order(seed, script):
    """The answer to each request of a script."""
    found = []
    requests = list(script)
    while requests:
        banks = (Bank("one", seed), Bank("two", seed, frozenset(JUDGED)), Bank("three", seed))
        async with open_bench(*banks) as bench:
            while requests and (step := requests.pop(0)) != "restart":
                if step == "drop":
                    bench.chain.cache._sheets.clear()
                    bench.chain._chosen.clear()
                    continue
                rate = await bench.ask(*step)
                known = isinstance(rate, NoRate)
                found.append((step, rate.text if known else (rate.units, rate.day, rate.provider)))
    return found


def run(seed, script):
    return trio.run(ask_in_order, seed, script, clock=virtual_clock(autojump_threshold=0))


@cache
def alone(seed, request):
    return run(seed, (request,))[0]


requests = st.tuples(st.sampled_from((*JUDGED, *UNJUDGED)), st.sampled_from(DAYS))


@given(
    st.integers(0, 3),
    st.lists(requests | st.sampled_from(["restart", "drop"]), min_size=2, max_size=12),
)
def test_an_answer_depends_on_the_day_and_the_sources_and_on_nothing_else(seed, script):
    for found in run(seed, script):
        assert found == alone(seed, found[0])


def test_wrong_rows_steps_and_gaps_are_among_what_is_asked():
    """Or the property above would hold of anything."""
    found = [alone(seed, (code, day)) for seed in range(4) for code in UNJUDGED for day in DAYS]
    found += [alone(seed, (code, day)) for seed in range(4) for code in JUDGED for day in DAYS]
    texts = [answer for _, answer in found if isinstance(answer, str)]
    assert any("implausible" in text for text in texts)
    rials = {answer[0] for (code, _), answer in found if code == "IRR" and len(answer) == 3}
    assert {Decimal(49_337), Decimal(49_337 * 27)} <= rials
    assert {answer[2] for _, answer in found if len(answer) == 3} == {"one", "two", "three"}
