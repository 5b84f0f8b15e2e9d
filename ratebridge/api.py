"""One conversion, for programs that embed ratebridge."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial

import attrs
import trio

from .app import make_chain, make_sources, utc_now
from .conversion import rounded, to_euro
from .dates import BadDate, rate_day, wire_time
from .errors import BadRequest, NoRate, Refusal
from .link.tls import tls_context
from .messages import clipped, is_currency, parse_stake, quoted
from .observer import Observer
from .providers.http import HttpClient
from .providers.source import Source
from .rates import Rate
from .settings import Settings


@attrs.frozen
class Conversion:
    """A stake and its amount in euro; `rate` is None if it was in euro already."""

    stake: Decimal
    currency: str
    eur: Decimal
    rate: Rate | None


async def convert(
    stake: Decimal,
    currency: str,
    instant: datetime | None = None,
    settings: Settings | None = None,
    *,
    sources: Sequence[Source] | None = None,
    clock: Callable[[], datetime] = utc_now,
) -> Conversion:
    """Convert one stake at the rate valid at `instant` (aware; None: now), as the service would.

    `settings` name the sources; without them it uses those that need no key.
    `sources` and `clock` replace the real ones in tests.

    Raises `BadRequest` for a stake that is no finite number or outside the
    service's bounds (below 10^15, at most 19 decimals), a currency that is not
    three capital letters, and an instant without a time zone. Raises `NoRate` if
    there is no rate for that currency or day (before 1999, or in the future), or
    none at present; and `BadSettings` if the environment has a proxy of no use.
    """
    try:
        amount = parse_stake(str(stake))
    except ValueError as flaw:
        raise BadRequest(f"stake {clipped(str(stake))} {flaw}") from None
    if not is_currency(currency):
        raise BadRequest(f"currency {quoted(currency)} is not three capital letters")
    now = clock()
    day = _day(now if instant is None else instant, now)
    if currency == "EUR":
        return Conversion(stake, currency, rounded(amount), None)
    settings = settings or Settings()
    problem = None
    async with (
        aclosing(HttpClient(partial(tls_context, settings.verify_ssl))) as http,
        trio.open_nursery() as fetch_nursery,
    ):
        sources = sources or make_sources(settings, http)
        chain = make_chain(settings, sources, fetch_nursery, Observer(), clock)
        try:
            rate = await chain.rate(currency, day)
        except NoRate as error:  # raised outside, so that no nursery wraps it in a group
            problem = error
        fetch_nursery.cancel_scope.cancel()
    if problem is not None:
        raise problem
    return Conversion(stake, currency, to_euro(amount, rate.units, rate.euro), rate)


def convert_sync(
    stake: Decimal,
    currency: str,
    instant: datetime | None = None,
    settings: Settings | None = None,
) -> Conversion:
    """`convert` for a program that does not run trio."""
    return trio.run(convert, stake, currency, instant, settings)


def _day(instant: datetime, now: datetime) -> date:
    if instant.utcoffset() is None:
        raise BadRequest(f"instant {instant.isoformat()} has no time zone")
    try:
        utc = instant.astimezone(UTC)
    except OverflowError:
        raise BadRequest(f"instant {instant.isoformat()} is out of range") from None
    try:
        return rate_day(utc, now)
    except BadDate as flaw:
        raise NoRate(Refusal.BAD_DATE, f"date {wire_time(utc)} {flaw}") from None
