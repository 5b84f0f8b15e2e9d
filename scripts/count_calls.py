"""How many calls to the rate sources a load costs, and what the fetching bears.

    uv run scripts/count_calls.py                      the calls, beside a simple client's
    uv run scripts/count_calls.py --days 3000          memory, with so many different days
    uv run scripts/count_calls.py --cancelled 60000    the pool, after so many cancelled fetches

The calls are counted by stand-ins for freecurrencyapi and Frankfurter, in
memory and on a virtual clock; each answer takes 0.2 s. The simple client asks
for the one pair that a request needs, keeps what it got, does not wait for a
call that is under way, and asks the second source when the first refuses. The
quotas are set aside, so that both make the calls that they want to make.

The cancelled fetches go over sockets, to a stand-in that does not answer, from
twice as many tasks as may fetch at a time. Exits with 1 when a figure is not
what it has to be.
"""

import argparse
import gc
import itertools
import random
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Final

import trio
import trio.testing

from ratebridge.errors import NoRate
from ratebridge.fakes.feed import CURRENCIES
from ratebridge.fakes.rates import (
    FRANKFURTER,
    FREECURRENCYAPI,
    HANG,
    Call,
    FakeRates,
    Fault,
    memory_transport,
    serve_rates,
)
from ratebridge.observer import Observer
from ratebridge.providers.chain import MOST_FETCHES, RateChain
from ratebridge.providers.frankfurter import Frankfurter
from ratebridge.providers.freecurrencyapi import FreeCurrencyApi
from ratebridge.providers.http import HttpClient
from ratebridge.providers.source import Source
from ratebridge.rates import Tables

URL: Final = "http://rates.test"
KEY: Final = "key"
NOW: Final = datetime(2022, 2, 10, 12, tzinfo=UTC)  # ZWL had a rate then, as in recorded traffic
LATENCY: Final = 0.2  # s
LIFE: Final = 7200.0  # s, the default of the settings
UNLIMITED: Final = 10**9
TLS: Final = ssl.create_default_context()

Wish = tuple[str, date]


def utc_now() -> datetime:
    return NOW


def two_sources(client: HttpClient, url: str) -> list[Source]:
    return [FreeCurrencyApi(client, KEY, f"{url}/v1"), Frankfurter(client, f"{url}/v2")]


@contextmanager
def judging(what: str) -> Iterator[Callable[[bool], None]]:
    """Collects whether something holds, and leaves with exit code 1 if it does not."""
    held: list[bool] = []
    yield held.append
    if not all(held):
        sys.exit(f"{what}: not so")


# The calls.


@asynccontextmanager
async def open_chain(fake: FakeRates) -> AsyncIterator[tuple[RateChain, trio.Nursery]]:
    """The chain of the service over both sources in memory, and the nursery that it fetches in."""
    client = HttpClient(TLS, memory_transport(fake))
    async with trio.open_nursery() as nursery:
        chain = RateChain(
            two_sources(client, URL),
            Tables(LIFE),
            nursery,
            deadline=5.0,
            utc_now=utc_now,
            observer=Observer(),
        )
        yield chain, nursery


async def ask_chain(fake: FakeRates, wishes: Sequence[Wish], gap: float) -> None:
    """The requests, `gap` seconds apart, through the chain of the service."""
    async with open_chain(fake) as (chain, nursery):

        async def ask(currency: str, day: date) -> None:
            try:
                today = utc_now().date()
                if chain.rate_at_hand(currency, day, today, trio.current_time()) is None:
                    await chain.rate(currency, day)
            except NoRate:
                assert currency == "BTC", "the only one that no source knows"

        for wish in wishes:
            nursery.start_soon(ask, *wish)
            await trio.sleep(gap)


async def ask_simply(fake: FakeRates, wishes: Sequence[Wish], gap: float) -> None:
    """The same requests, one pair a call, and no call shared."""
    client = HttpClient(TLS, memory_transport(fake))
    held: set[Wish] = set()

    async def ask(currency: str, day: date) -> None:
        if (currency, day) in held:
            return
        one = {"date": f"{day}", "base_currency": currency, "currencies": "EUR"}
        answer = await client.get(f"{URL}/v1/historical", one, {"apikey": KEY})
        if answer.status != 200:
            other = {"date": f"{day}", "base": currency, "quotes": "EUR"}
            answer = await client.get(f"{URL}/v2/rates", other)
        if answer.status == 200:
            held.add((currency, day))

    async with trio.open_nursery() as nursery:
        for currency, day in wishes:
            if currency != "EUR":
                nursery.start_soon(ask, currency, day)
            await trio.sleep(gap)


def count(
    ask: Callable[[FakeRates, Sequence[Wish], float], Awaitable[None]],
    wishes: Sequence[Wish],
    gap: float,
) -> FakeRates:
    fake = FakeRates(utc_now, per_minute=UNLIMITED, per_month=UNLIMITED, latency=LATENCY)
    trio.run(ask, fake, wishes, gap, clock=trio.testing.MockClock(autojump_threshold=0))
    return fake


def show_calls() -> None:
    chance = random.Random(1)
    days = [NOW.date() - timedelta(days=21 + back) for back in range(30)]
    cold_day = [("USD", days[0])] * 300
    month = [(chance.choice(CURRENCIES), chance.choice(days)) for _ in range(1000)]
    loads = [
        ("300 requests for one cold day, at once", cold_day, 0.0, 1),
        ("300 requests for one cold day, 50 a second", cold_day, 0.02, 1),
        ("1,000 requests, 30 days, 9 currencies, at once", month, 0.0, 60),
        ("1,000 requests, 30 days, 9 currencies, 50 a second", month, 0.02, 60),
    ]
    print(f"{'calls to freecurrencyapi + frankfurter':<52}{'ratebridge':>15}{'simple client':>18}")
    with judging("few calls") as judge:
        for name, wishes, gap, most in loads:
            # In euro there is nothing to ask for, and the bridge does not.
            asked = [wish for wish in wishes if wish[0] != "EUR"]
            ours, simple = count(ask_chain, asked, gap), count(ask_simply, asked, gap)
            print(f"{name:<52}{_calls(ours):>15}{_calls(simple):>18}")
            judge(ours.count() <= most)


def _calls(fake: FakeRates) -> str:
    first, second = fake.count(FREECURRENCYAPI), fake.count(FRANKFURTER)
    return f"{first} + {second} = {first + second}"


# The memory.


async def ask_days(days: Sequence[date], rounds: int) -> list[tuple[int, float]]:
    """After each round of different days: the tables held, and MiB allocated by Python."""
    found = []
    fake = FakeRates(utc_now, per_minute=UNLIMITED, per_month=UNLIMITED)
    async with open_chain(fake) as (chain, _):
        size = len(days) // rounds
        for start in range(0, len(days), size):
            for day in days[start : start + size]:
                rate = await chain.rate("UAH", day)
                assert rate.asked == day
            fake.calls.clear()
            gc.collect()
            found.append((len(chain.tables), tracemalloc.get_traced_memory()[0] / 2**20))
    return found


def show_memory(count: int) -> None:
    days = [NOW.date() - timedelta(days=1 + back) for back in range(count)]
    rounds = 6
    tracemalloc.start()
    found = trio.run(ask_days, days, rounds)
    for i, (tables, size) in enumerate(found, start=1):
        print(
            f"{i * (count // rounds):>8,} days asked for {tables:>6} tables held {size:>8.1f} MiB"
        )
    with judging("memory flat after the bound") as judge:
        judge(found[-1][1] < found[rounds // 2][1] * 1.05)


# The pool.


async def cancel_fetches(count: int) -> tuple[int, int, int]:
    """Fetches cancelled, those of them that had reached the source, and of 100 good ones
    afterwards how many failed.

    All that are under way are cancelled at once, again and again, after a random number of
    steps: while they wait for their turn, connect, send, or wait for the answer that the
    source never gives. (Cancelled while some connect and others wait inside the pool, they
    would leak its slots: raise the limit above the pool's size to see it.)
    """
    fake = FakeRates(utc_now, per_minute=UNLIMITED, per_month=UNLIMITED)
    chance = random.Random(1)
    limiter = trio.CapacityLimiter(MOST_FETCHES)  # as the chain has it
    under_way: dict[str, trio.CancelScope] = {}
    days = map(date.fromordinal, itertools.count(1))
    cancelled = arrived = failed = 0

    def hang(call: Call) -> Fault:
        nonlocal arrived
        arrived += call.day in under_way  # or else it has been given up on its way
        fake.calls.clear()
        return HANG

    async def cancel_on_and_on() -> None:
        while cancelled < count:
            for _ in range(chance.randrange(100)):
                await trio.lowlevel.checkpoint()
            for scope in under_way.values():
                scope.cancel()

    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_rates, fake)
        client = HttpClient(TLS)
        source = FreeCurrencyApi(client, KEY, f"http://127.0.0.1:{port}/v1")
        fake.disturb = hang

        async def fetch_on_and_on() -> None:
            nonlocal cancelled
            while cancelled < count:
                day = next(days)
                with trio.CancelScope() as under_way[str(day)]:
                    async with limiter:
                        await source.fetch(day, NOW)
                cancelled += under_way.pop(str(day)).cancelled_caught

        async with trio.open_nursery() as requests:
            requests.start_soon(cancel_on_and_on)
            for _ in range(2 * MOST_FETCHES):
                requests.start_soon(fetch_on_and_on)
        fake.disturb = lambda _call: None
        for back in range(100):
            with trio.move_on_after(5) as patience:
                await source.fetch(NOW.date() - timedelta(days=1 + back), NOW)
            failed += patience.cancelled_caught
        await client.aclose()
        nursery.cancel_scope.cancel()
    return cancelled, arrived, failed


def show_pool(count: int) -> None:
    cancelled, arrived, failed = trio.run(cancel_fetches, count)
    print(f"{cancelled:,} fetches cancelled under contention, {arrived:,} of them unanswered calls")
    print(f"then {100 - failed} of 100 good ones on the same pool")
    with judging("the pool works") as judge:
        judge(cancelled >= count and not failed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts calls to the rate sources.")
    parser.add_argument("--days", type=int, metavar="N", help="memory with N different days")
    parser.add_argument("--cancelled", type=int, metavar="N", help="the pool after N cancelled")
    options = parser.parse_args()
    if options.days:
        show_memory(options.days)
    elif options.cancelled:
        show_pool(options.cancelled)
    else:
        show_calls()


if __name__ == "__main__":
    main()
