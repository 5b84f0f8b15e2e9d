"""Conversions for programs that embed ratebridge."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Self

import attrs
import trio

from .app import make_chain, make_sources, utc_now
from .conversion import rounded, to_euro
from .dates import BadDate, rate_day, wire_time
from .errors import BadRequest, NoRate, Refusal
from .link.tls import tls_context
from .messages import clipped, is_currency, parse_stake, quoted
from .providers.chain import RateChain
from .providers.http import HttpClient
from .providers.source import Source
from .rates import Rate
from .reporting.observer import Observer
from .settings import Settings


@attrs.frozen
class Conversion:
    """A stake and its amount in euro; `rate` is None if it was in euro already."""

    stake: Decimal
    currency: str
    eur: Decimal
    rate: Rate | None


class Converter:
    """Converts stakes as the service would, and keeps tables, quotas and connections.

    Use it by `async with`, in trio:

        async with ratebridge.Converter(settings) as converter:
            done = await converter.convert(Decimal("253.67"), "USD", date(2021, 5, 18))

    Several tasks may call `convert` at once. Conversions of one day cost one call of a source.

    Args:
        settings: which sources to ask, and how; without them, those that need no key.
        sources: replace the sources of the settings, in tests.
        clock: replaces the wall clock (UTC), in tests.

    Entering raises `CannotStart` if TLS cannot be set up on this machine, and `BadSettings` for
    authorities that are not there.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        sources: Sequence[Source] | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._settings = settings or Settings()
        self._sources = sources
        self._clock = clock
        self._stack = AsyncExitStack()
        self._chain: RateChain | None = None

    async def __aenter__(self) -> Self:
        settings, sources = self._settings, self._sources
        if not sources:
            http = HttpClient(tls_context(settings.verify_ssl), settings.proxies)
            sources = make_sources(settings, http)
        fetch_nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(fetch_nursery.cancel_scope.cancel)
        self._chain = make_chain(settings, sources, fetch_nursery, Observer(), self._clock)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._chain = None
        # The nursery is not told of the error, which it would wrap in a group.
        await self._stack.aclose()

    async def convert(
        self, stake: Decimal | int, currency: str, when: date | datetime | None = None
    ) -> Conversion:
        """Convert a stake at the rate of a day.

        Args:
            stake: a finite number below 10^15, with at most 19 decimals.
            currency: three letters, such as "USD".
            when: a day, or an aware datetime, whose UTC day counts; None is today.

        Raises `BadRequest` for any other argument; a retry does not help. Raises `NoRate` if
        there is no rate for that currency or day (before 1999, or in the future), or none at
        present.
        """
        await trio.lowlevel.checkpoint()  # many of them in a row let others run
        if self._chain is None:
            raise BadRequest("a Converter converts inside of its `async with`")
        now = self._clock()
        amount = _read_stake(stake)
        code = str(currency).upper() if str(currency).isascii() else ""
        if not is_currency(code):
            raise BadRequest(f"currency {quoted(str(currency))} is not a three-letter code")
        day = _read_day(now if when is None else when, now)
        if code == "EUR":
            return Conversion(amount, code, rounded(amount), None)
        self._chain.watch_clock()
        rate = self._chain.cached_rate(code, day, now) or await self._chain.rate(code, day)
        return Conversion(amount, code, to_euro(amount, rate.units, rate.euro), rate)


async def convert(
    stake: Decimal | int,
    currency: str,
    when: date | datetime | None = None,
    settings: Settings | None = None,
) -> Conversion:
    """One conversion by a `Converter` of its own, which see."""
    async with Converter(settings) as converter:
        return await converter.convert(stake, currency, when)


def convert_sync(
    stake: Decimal | int,
    currency: str,
    when: date | datetime | None = None,
    settings: Settings | None = None,
) -> Conversion:
    """`convert` for a program that does not run trio."""
    return trio.run(convert, stake, currency, when, settings)


def _read_stake(stake: Any) -> Decimal:
    if not isinstance(stake, Decimal | int) or isinstance(stake, bool):
        raise BadRequest(f"stake {clipped(repr(stake))} is not a Decimal")
    text = str(Decimal(stake))
    try:
        return parse_stake(text)
    except ValueError as flaw:
        raise BadRequest(f"stake {clipped(text)} {flaw}") from None


def _read_day(when: Any, now: datetime) -> date:
    """The day whose rate counts, of a day or an instant."""
    if not isinstance(when, date):
        raise BadRequest(f"{clipped(repr(when))} is not a date")
    if not isinstance(when, datetime):
        utc = datetime(when.year, when.month, when.day, tzinfo=UTC)
    elif when.utcoffset() is None:
        raise BadRequest(f"instant {when.isoformat()} has no time zone")
    else:
        try:
            utc = when.astimezone(UTC)
        except OverflowError:
            raise BadRequest(f"instant {when.isoformat()} is out of range") from None
    try:
        return rate_day(utc, now)
    except BadDate as flaw:
        raise NoRate(Refusal.BAD_DATE, f"date {wire_time(utc)} {flaw}") from None
