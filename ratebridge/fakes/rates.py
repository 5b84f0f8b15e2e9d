"""Fake rate sources: what they share, in memory or on a port.

Each source has a module beside this one, `NAME.py`, whose `FAKE` answers its requests.
`FakeRates.answer` does no I/O: it takes a request, records it and returns an answer.
`memory_dial` replaces the network, for a virtual clock; `serve_rates` listens on a
port. The rates are made up but plausible, and fixed for a source, a currency and a
day.
"""

import json
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache, partial
from importlib import import_module
from typing import Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import attrs
import h11
import trio
import trio.testing

from ..history import embedded
from ..link.dial import Dial, next_event
from ..settings import KEYS, SOURCES
from .port import reset, serve_on_port


def units_of(text: str) -> dict[str, Decimal]:
    """Units for one euro by currency, from a text of alternating codes and numbers."""
    words = text.split()
    return {code: Decimal(units) for code, units in zip(words[::2], words[1::2], strict=True)}


# Approximate units for one euro of currencies that most sources have. Where the ECB has quoted a
# currency, what it quoted counts: rates of another year would be implausible.
COMMON: Final = units_of("""
    AUD 1.57   BGN 1.9558 BRL 6.4   CAD 1.47  CHF 1.096 CNY 7.85  CZK 25.43 DKK 7.436 EUR 1
    GBP 0.86   HKD 9.49   HRK 7.51  HUF 350.6 IDR 17450 ILS 3.98  INR 89.3  ISK 150.1 JPY 133.1
    KRW 1379   MXN 24.2   MYR 5.04  NOK 10.06 NZD 1.69  PHP 58.4  PLN 4.524 RON 4.926 RUB 90.1
    SEK 10.12  SGD 1.625  THB 38.4  TRY 10.2  USD 1.222 ZAR 17.2
""")
CONTEXT: Final = Context(prec=40, rounding=ROUND_HALF_EVEN)

Manner = Literal["whole", "hang", "drip", "reset", "close"]


@attrs.frozen
class Fault:
    """How an answer differs from a correct one.

    `status`, `headers` and `body` replace the correct ones. `quotes` replaces quotes
    of currencies, as JSON text, and `base` the base currency. `empty` removes all
    quotes, `cut` limits the body to so many bytes. `manner` is how it is sent: never
    (hang), a byte a second (drip), or replaced by a reset or a close.
    """

    status: int | None = None
    headers: Mapping[str, str] = attrs.Factory(dict)
    body: bytes | None = None
    quotes: Mapping[str, str] = attrs.Factory(dict)
    base: str | None = None
    empty: bool = False
    cut: int | None = None
    manner: Manner = "whole"


HANG: Final = Fault(manner="hang")
DRIP: Final = Fault(manner="drip")
RESET: Final = Fault(manner="reset")
CLOSE: Final = Fault(manner="close")
REDIRECT: Final = Fault(status=302, headers={"location": "/elsewhere"}, body=b"")
HTML: Final = Fault(body=b"<!DOCTYPE html><title>Down for maintenance</title>")
CUT: Final = Fault(cut=100)
GZIP: Final = Fault(headers={"content-encoding": "gzip"})
HUGE: Final = Fault(body=bytes(2_000_000))
EMPTY: Final = Fault(empty=True)


@attrs.define
class Call:
    """A request. `key` is from the header, `status` is that of the answer, be it sent or not."""

    source: str
    path: str
    params: Mapping[str, str]
    key: str | None
    at: datetime
    status: int | None = None


@attrs.frozen
class FakeAnswer:
    """An answer, and how it is sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    manner: Manner = "whole"


class Rejected(Exception):
    """A request that the source refuses: the status, and what its body holds, as for JSON."""


class FakeSource(ABC):
    """One source, below the path `prefix`; `url` names the setting of its base URL.

    `key_header` is where it looks for a key, in lower case. `units` are the usual units for one
    euro. A subclass is an attrs class whose options are fields with defaults.
    """

    prefix: ClassVar[str]
    url: ClassVar[str]
    key_header: ClassVar[str] = "apikey"
    units: ClassVar[Mapping[str, Decimal]] = COMMON

    def answer(self, call: Call, fault: Fault) -> FakeAnswer:
        """A correct answer, except for the fault's `quotes`, `base` and `empty`."""
        headers = {"content-type": "application/json"}
        try:
            body = self.body(call, fault)
            return FakeAnswer(200, headers, body if isinstance(body, bytes) else body.encode())
        except Rejected as rejected:
            status, content = rejected.args
            return FakeAnswer(status, headers, json.dumps(content).encode())

    @abstractmethod
    def body(self, call: Call, fault: Fault) -> str | bytes:
        """The body of that answer, where it is a 200. Raises `Rejected` for any other."""

    @staticmethod
    @abstractmethod
    def text(rate: Decimal) -> str:
        """A rate in as many digits as the source gives."""

    @classmethod
    @lru_cache(65536)
    def quote(cls, currency: str, day: date, base: str = "EUR") -> str:
        """Units of a currency for one of the base, as the text that is sent."""
        return cls.text(CONTEXT.divide(cls._made_up(currency, day), cls._made_up(base, day)))

    @classmethod
    def _made_up(cls, currency: str, day: date) -> Decimal:
        """Units for one euro: within 1 % of the true, and within 0.2 % of another source's."""
        if currency == "EUR":
            return cls.units[currency]
        known = embedded().nearest(currency, day)
        about = cls.units[currency] if known is None else Decimal(f"{known[0]:.6g}")
        that_day = zlib.crc32(f"{currency} {day}".encode()) % 20_001 - 10_000
        that_source = zlib.crc32(f"{cls.__name__} {currency} {day}".encode()) % 2_001 - 1_000
        return CONTEXT.multiply(about, 1 + Decimal(that_day * 10 + that_source).scaleb(-7))


def fake(name: str) -> type[FakeSource]:
    """The fake of a source."""
    found: type[FakeSource] = import_module(f".{name}", __package__).FAKE
    return found


def quote(source: str, currency: str, day: date, base: str = "EUR") -> str:
    """The quote of a source's fake."""
    return fake(source).quote(currency, day, base)


class FakeRates:
    """All the sources. `calls` are the requests so far.

    `latency` is how long an answer takes, in seconds. The options are those of
    `FakeFreeCurrencyApi`; the `key` that is accepted is that of all fakes with one. `disturb`
    may return a fault for a call that has none from `order`. `sources` may be replaced by others.
    """

    def __init__(
        self,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        latency: float = 0.0,
        **options: Any,
    ) -> None:
        self._utc_now = utc_now
        self.latency = latency
        self.calls: list[Call] = []
        self.disturb: Callable[[Call], Fault | None] = lambda _call: None
        own = {name: {"key": options.get("key")} for name in KEYS} | {"freecurrencyapi": options}
        self.sources: dict[str, FakeSource] = {n: fake(n)(**own.get(n, {})) for n in SOURCES}
        self._ordered: dict[str, deque[Fault]] = {name: deque() for name in self.sources}

    def order(self, source: str, *faults: Fault) -> None:
        """Let the next calls of a source go wrong, one fault each."""
        self._ordered[source] += faults

    def count(self, source: str | None = None) -> int:
        """The calls for rates so far: of one source, or of all."""
        return sum(
            source in (None, call.source) and not call.path.endswith("/status")
            for call in self.calls
        )

    def urls(self, base: str) -> dict[str, str]:
        """The settings of the sources' URLs, for a server at `base`."""
        return {fake.url: base + fake.prefix for fake in self.sources.values()}

    def answer(self, target: str, headers: Mapping[str, str]) -> FakeAnswer:
        """Answer a GET of `target` (path and query); header names are in lower case."""
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        asked = (n for n, f in self.sources.items() if parts.path.startswith(f"{f.prefix}/"))
        if (source := next(asked, None)) is None:
            return FakeAnswer(404, {}, b"")
        key = headers.get(self.sources[source].key_header)
        call = Call(source, parts.path, params, key, self._utc_now())
        self.calls.append(call)
        ordered = self._ordered[source]
        fault = (ordered.popleft() if ordered else self.disturb(call)) or Fault()
        answer = self.sources[source].answer(call, fault)
        call.status = fault.status or answer.status
        return FakeAnswer(
            call.status,
            {**answer.headers, **fault.headers},
            (answer.body if fault.body is None else fault.body)[: fault.cut],
            fault.manner,
        )


def working_day(day: date) -> date:
    """The day itself from Monday to Friday, else the Friday before."""
    return day - timedelta(days=max(0, day.weekday() - 4))


def read_day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None


def json_object(members: Mapping[str, str]) -> str:
    """A JSON object from names and JSON texts."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"


# In memory, and on a port.


def memory_dial(rates: FakeRates) -> Dial:
    """The fake in place of the network, for `HttpClient(dial=...)`."""

    async def dial() -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        trio.lowlevel.spawn_system_task(_serve_connection, rates, server)
        await trio.lowlevel.checkpoint()
        return client

    return dial


async def serve_rates(rates: FakeRates, **where: Any) -> None:
    """The fake on a port, for ever; `nursery.start` returns its number.

    `where` is `host`, `port` and `tls`, see `serve_on_port`.
    """
    await serve_on_port(partial(_serve_connection, rates), **where)


async def _serve_connection(rates: FakeRates, stream: trio.abc.Stream) -> None:
    """Answer one request. A client that goes, or that does not speak HTTP, is no error."""
    connection = h11.Connection(h11.SERVER)
    try:
        request = await next_event(stream, connection)
        if not isinstance(request, h11.Request):
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        answer = rates.answer(request.target.decode("latin-1"), headers)
        await trio.sleep(rates.latency)
        if answer.manner == "hang":
            await stream.receive_some()  # returns when the client goes
        if answer.manner == "reset":
            await reset(stream)
        if answer.manner not in ("whole", "drip"):
            return
        more = {"content-length": str(len(answer.body)), "connection": "close"}
        head = [*{**answer.headers, **more}.items()]
        await stream.send_all(
            connection.send(h11.Response(status_code=answer.status, headers=head))
        )
        size, pause = (1, 1) if answer.manner == "drip" else (65536, 0)
        for start in range(0, len(answer.body), size):
            await trio.sleep(pause)
            await stream.send_all(answer.body[start : start + size])
    except (trio.BrokenResourceError, h11.RemoteProtocolError):
        pass
    finally:
        await trio.aclose_forcefully(stream)
