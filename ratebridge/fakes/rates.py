"""Stand-ins for freecurrencyapi and Frankfurter v2: one core, and two doors to it.

`FakeRates.answer` is pure: a request in, an answer out, and a record of it.
`memory_transport` puts it in the network's place, for a virtual clock;
`serve_rates` listens on a port. Paths below /v1 are freecurrencyapi's, those
below /v2 Frankfurter's. The rates are made up, but plausible, and always the
same for a source, a currency and a day.
"""

import gzip
import json
import ssl
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import attrs
import h11
import trio

if TYPE_CHECKING:
    import httpx

FREECURRENCYAPI: Final = "freecurrencyapi"
FRANKFURTER: Final = "frankfurter"


def _units_of(text: str) -> dict[str, Decimal]:
    words = text.split()
    return {code: Decimal(units) for code, units in zip(words[::2], words[1::2], strict=True)}


# Units for one euro, roughly, of the 33 currencies of freecurrencyapi ...
_COMMON: Final = _units_of("""
    AUD 1.57   BGN 1.9558 BRL 6.4   CAD 1.47  CHF 1.096 CNY 7.85  CZK 25.43 DKK 7.436 EUR 1
    GBP 0.86   HKD 9.49   HRK 7.51  HUF 350.6 IDR 17450 ILS 3.98  INR 89.3  ISK 150.1 JPY 133.1
    KRW 1379   MXN 24.2   MYR 5.04  NOK 10.06 NZD 1.69  PHP 58.4  PLN 4.524 RON 4.926 RUB 90.1
    SEK 10.12  SGD 1.625  THB 38.4  TRY 10.2  USD 1.222 ZAR 17.2
""")
# ... and of some that only Frankfurter has.
_RARE: Final = _units_of("""
    AED 4.49   ALL 123.4  AMD 637   ARS 115   AZN 2.08  BAM 1.956 BDT 103.7 CLP 872   COP 4460
    EGP 19.1   GEL 4.13   KES 131.6 KWD 0.367 KZT 521   MAD 10.8  MDL 21.6  MKD 61.6  NGN 502
    PEN 4.52   PKR 187    RSD 117.6 SAR 4.58  TMT 4.28  TWD 34.2  UAH 33.4  UZS 12930 VND 28170
    ZWL 442
""")
_UNITS: Final = {
    FREECURRENCYAPI: _COMMON,
    FRANKFURTER: dict(sorted({**_COMMON, **_RARE}.items())),
}
_LIVES: Final = {  # Frankfurter's: the first and the last day
    "BGN": (date(1999, 1, 4), date(2025, 12, 31)),
    "HRK": (date(1999, 1, 4), date(2022, 12, 31)),
    "ZWL": (date(2010, 1, 1), date(2024, 8, 30)),
}
_A_DAY_BEHIND: Final = frozenset({"UAH", "UZS"})  # whose bank publishes late
_FORTNIGHTLY: Final = "TMT"  # whose bank publishes on the 1st and the 15th
_AHEAD: Final = frozenset({"AUD", "NZD"})  # whose bank has tomorrow's already

_FIRST_DAY: Final = date(1999, 1, 1)
_TEN_PLACES: Final = Decimal("1e-10")
_FIVE_DIGITS: Final = Context(prec=5, rounding=ROUND_HALF_EVEN)
_CONTEXT: Final = Context(prec=40, rounding=ROUND_HALF_EVEN)

Manner = Literal["whole", "hang", "drip", "reset", "close"]


@attrs.frozen
class Fault:
    """How an answer is wrong; what is not said here is as it should be.

    `status`, `headers` and `body` stand in for the true ones. `quotes` gives
    currencies another quote, as JSON text. `base` is the currency that the quotes
    are for one of, whatever was asked. `empty` leaves no quotes, `cut` no more than
    so many bytes of the body, `zipped` compresses it. `manner` is how it is sent:
    not at all but the connection kept (hang), a byte a second (drip), a reset or
    a close in its place.
    """

    status: int | None = None
    headers: Mapping[str, str] = attrs.Factory(dict)
    body: bytes | None = None
    quotes: Mapping[str, str] = attrs.Factory(dict)
    base: str | None = None
    empty: bool = False
    cut: int | None = None
    padding: int = 0
    zipped: bool = False
    manner: Manner = "whole"


HANG: Final = Fault(manner="hang")
DRIP: Final = Fault(manner="drip")
RESET: Final = Fault(manner="reset")
CLOSE: Final = Fault(manner="close")
REDIRECT: Final = Fault(status=302, headers={"location": "/v1/elsewhere"}, body=b"")
HTML: Final = Fault(body=b"<!DOCTYPE html><title>Down for maintenance</title>")
CUT: Final = Fault(cut=100)
GZIP: Final = Fault(zipped=True)
HUGE: Final = Fault(padding=30_000_000)
EMPTY: Final = Fault(empty=True)
NO_CALLS_THIS_MINUTE: Final = Fault(
    status=429,
    headers={"x-ratelimit-remaining-quota-minute": "0", "x-ratelimit-remaining-quota-month": "9"},
    body=b'{"message":"API rate limit exceeded for \'quota\'"}',
)
NO_CALLS_THIS_MONTH: Final = attrs.evolve(
    NO_CALLS_THIS_MINUTE, headers={"x-ratelimit-remaining-quota-month": "0"}
)


@attrs.define
class Call:
    """A request that came. `key` is the header's; `status` is what was answered, if anything."""

    source: str
    path: str
    params: Mapping[str, str]
    key: str | None
    at: datetime
    status: int | None = None

    @property
    def day(self) -> str:
        """The day asked for, as text; today's where none was."""
        return self.params.get("date") or f"{self.at:%Y-%m-%d}"


@attrs.frozen
class FakeAnswer:
    """What goes out, and how."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    manner: Manner = "whole"

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        return [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]


class _Refusal(Exception):
    """A request that the source refuses: a status and a body."""


class FakeRates:
    """Both sources. `calls` are the requests so far.

    `key` is the one that freecurrencyapi accepts (None: any), `per_minute` and
    `per_month` are its quotas, `dollar_only` makes it refuse any other base.
    `latency` is the time in seconds that an answer takes on its way.
    """

    def __init__(
        self,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        key: str | None = None,
        per_minute: int = 10,
        per_month: int = 5000,
        dollar_only: bool = False,
        latency: float = 0.0,
    ) -> None:
        self._utc_now = utc_now
        self.key = key
        self.per_minute = per_minute
        self.per_month = per_month
        self.dollar_only = dollar_only
        self.latency = latency
        self.calls: list[Call] = []
        self.disturb: Callable[[Call], Fault | None] = lambda _call: None
        self._ordered: dict[str, deque[Fault]] = {FREECURRENCYAPI: deque(), FRANKFURTER: deque()}
        self._used: dict[str, int] = {}  # by the minute or month they were used in

    def order(self, source: str, *faults: Fault) -> None:
        """The next calls of a source go wrong, each in its way; `disturb` is asked about others."""
        self._ordered[source] += faults

    def count(self, source: str | None = None) -> int:
        """The calls so far: of one source, or of both."""
        return sum(source in (None, call.source) for call in self.calls)

    def answer(self, target: str, headers: Mapping[str, str]) -> FakeAnswer:
        """Answer a GET of `target` (path and query); header names are in lower case."""
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        source = FRANKFURTER if parts.path.startswith("/v2") else FREECURRENCYAPI
        call = Call(source, parts.path, params, headers.get("apikey"), self._utc_now())
        self.calls.append(call)
        ordered = self._ordered[source]
        fault = (ordered.popleft() if ordered else self.disturb(call)) or Fault()
        good = self._frankfurter if source == FRANKFURTER else self._freecurrencyapi
        answer = _spoil(good(call, fault), fault)
        if answer.manner in ("whole", "drip"):
            call.status = answer.status
        return answer

    # freecurrencyapi.

    def _freecurrencyapi(self, call: Call, fault: Fault) -> FakeAnswer:
        counted = not call.path.endswith("/status")
        headers = {"content-type": "application/json"}
        try:
            self._check_key(call)
            if counted:
                self._check_quota(call.at)
            body = self._freecurrencyapi_body(call, fault)
            status = 200
        except _Refusal as refusal:
            status, body = refusal.args
        if counted:
            if status == 200 and fault.status is None:  # only successful calls count
                for period in _periods(call.at):
                    self._used[period] = self._used.get(period, 0) + 1
            headers |= self._quota_headers(call.at)
        return FakeAnswer(status, headers, body.encode())

    def _check_key(self, call: Call) -> None:
        key = call.key or call.params.get("apikey")
        if not key or self.key not in (None, key):
            raise _Refusal(401, _json({"message": "Invalid authentication credentials"}))

    def _check_quota(self, at: datetime) -> None:
        if min(self._left(at)) <= 0:
            raise _Refusal(429, _json({"message": "API rate limit exceeded for 'quota'"}))

    def _left(self, at: datetime) -> tuple[int, int]:
        minute, month = (self._used.get(period, 0) for period in _periods(at))
        return self.per_minute - minute, self.per_month - month

    def _quota_headers(self, at: datetime) -> dict[str, str]:
        minute, month = self._left(at)
        return {
            "x-ratelimit-limit-quota-minute": str(self.per_minute),
            "x-ratelimit-remaining-quota-minute": str(minute),
            "x-ratelimit-limit-quota-month": str(self.per_month),
            "x-ratelimit-remaining-quota-month": str(month),
        }

    def _freecurrencyapi_body(self, call: Call, fault: Fault) -> str:
        params = call.params
        match call.path.removeprefix("/v1"):
            case "/status":
                left = self._left(call.at)[1]
                month = {"total": self.per_month, "used": self.per_month - left, "remaining": left}
                return _json({"account_id": 1, "quotas": {"month": month}})
            case "/currencies":
                units = _UNITS[FREECURRENCYAPI]
                return _json({"data": {code: {"code": code, "name": code} for code in units}})
            case "/latest":
                return f'{{"data":{self._flat(call.at.date(), params, fault)}}}'
            case "/historical":
                day = _day(params.get("date", ""))
                if day is None:
                    raise _invalid("date", "The date is not a valid date.")
                if day < _FIRST_DAY:
                    raise _invalid("date", f"The date must be a date after {_FIRST_DAY}.")
                if day >= call.at.date():
                    raise _invalid("date", "The date must be a date before today.")
                return f'{{"data":{{"{day}":{self._flat(day, params, fault)}}}}}'
            case _:
                raise _Refusal(404, _json({"message": "The route could not be found."}))

    def _flat(self, day: date, params: Mapping[str, str], fault: Fault) -> str:
        base = params.get("base_currency", "USD")
        units = _UNITS[FREECURRENCYAPI]
        if base not in units:
            raise _invalid("base_currency", "The selected base currency is invalid.")
        if self.dollar_only and base != "USD":
            raise _Refusal(403, _json({"message": "Your plan does not allow this base."}))
        codes = [code for code in params.get("currencies", "").split(",") if code] or list(units)
        if not set(codes) <= set(units):
            raise _invalid("currencies", "The selected currencies is invalid.")
        base = fault.base or base
        quotes = {} if fault.empty else {c: quote(FREECURRENCYAPI, c, day, base) for c in codes}
        return _object({**quotes, **fault.quotes})

    # Frankfurter.

    def _frankfurter(self, call: Call, fault: Fault) -> FakeAnswer:
        headers = {"content-type": "application/json", "cache-control": "public, max-age=3600"}
        try:
            return FakeAnswer(200, headers, self._frankfurter_body(call, fault).encode())
        except _Refusal as refusal:
            status, message = refusal.args
            headers["cache-control"] = "no-store"
            body = _json({"status": status, "message": message})
            return FakeAnswer(status, headers, body.encode())

    def _frankfurter_body(self, call: Call, fault: Fault) -> str:
        params = call.params
        if call.path != "/v2/rates":
            raise _Refusal(404, "not found")
        for name in params:
            if name not in ("date", "base", "quotes", "providers"):
                raise _Refusal(422, f"unknown parameter: {name}")
        today = call.at.date()
        day = _day(params["date"]) if "date" in params else today
        if day is None:
            raise _Refusal(422, "invalid date")
        units = _UNITS[FRANKFURTER]
        base = params.get("base", "EUR")
        codes = params["quotes"].split(",") if "quotes" in params else list(units)
        for code in (base, *codes):
            if code not in units:
                raise _Refusal(422, f"invalid currency: {code}")
        if fault.empty or day > today + timedelta(days=1):
            return "[]"
        base = fault.base or base
        rows = []
        for code in codes:
            quoted_on = _frankfurter_day(code, day)
            if "date" not in params and code in _AHEAD:
                quoted_on = day + timedelta(days=1)
            if quoted_on is not None:
                rate = fault.quotes.get(code) or quote(FRANKFURTER, code, quoted_on, base)
                row = {"date": f'"{quoted_on}"', "base": f'"{base}"', "quote": f'"{code}"'}
                rows.append(_object({**row, "rate": rate}))
        return f"[{','.join(rows)}]"


def quote(source: str, currency: str, day: date, base: str = "EUR") -> str:
    """How much of a currency makes one of the base, as JSON text.

    With freecurrencyapi up to 10 decimals, with Frankfurter 5 digits.
    """
    rate = _CONTEXT.divide(_units(source, currency, day), _units(source, base, day))
    if source == FRANKFURTER:
        return "1.0" if currency == base else f"{_FIVE_DIGITS.plus(rate):f}"
    text = f"{rate.quantize(_TEN_PLACES, context=_CONTEXT):f}"
    return text.rstrip("0").rstrip(".")


def _units(source: str, currency: str, day: date) -> Decimal:
    """Units for one euro: within 1 % of the usual, and within 0.2 % of the other source's."""
    usual = _UNITS[source][currency]
    if currency == "EUR":
        return usual
    that_day = zlib.crc32(f"{currency} {day}".encode()) % 20_001 - 10_000
    that_source = zlib.crc32(f"{source} {currency} {day}".encode()) % 2_001 - 1_000
    change = Decimal(that_day * 10 + that_source).scaleb(-7)
    return _CONTEXT.multiply(usual, 1 + change)


def _frankfurter_day(currency: str, day: date) -> date | None:
    """The day that Frankfurter's row for a day is of; None when there is none."""
    first, last = _LIVES.get(currency, (date.min, date.max))
    if currency == _FORTNIGHTLY:
        quoted_on = day.replace(day=15 if day.day >= 15 else 1)
    else:
        quoted_on = _working_day(day)
        if currency in _A_DAY_BEHIND:
            quoted_on = _working_day(quoted_on - timedelta(days=1))
    quoted_on = min(quoted_on, last)
    carried = (day - quoted_on).days
    return quoted_on if first <= quoted_on and carried <= 14 else None


def _working_day(day: date) -> date:
    return day - timedelta(days=max(0, day.weekday() - 4))


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None


def _periods(at: datetime) -> tuple[str, str]:
    return f"minute {at:%Y-%m-%d %H:%M}", f"month {at:%Y-%m}"


def _invalid(field: str, problem: str) -> _Refusal:
    body = {"message": "Validation error", "errors": {field: [problem]}, "info": "See the docs."}
    return _Refusal(422, _json(body))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(members: Mapping[str, str]) -> str:
    """A JSON object of members whose values are JSON text."""
    return "{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}"


def _spoil(answer: FakeAnswer, fault: Fault) -> FakeAnswer:
    body = answer.body if fault.body is None else fault.body
    headers = {**answer.headers, **fault.headers}
    body = b" " * fault.padding + body[: fault.cut]
    if fault.zipped:
        body = gzip.compress(body)
        headers["content-encoding"] = "gzip"
    return FakeAnswer(fault.status or answer.status, headers, body, fault.manner)


# In memory.


def memory_transport(rates: FakeRates) -> "httpx.AsyncBaseTransport":
    """The fake in the network's place, for `HttpClient(transport=...)`."""
    import httpx

    class Body(httpx.AsyncByteStream):
        def __init__(self, answer: FakeAnswer) -> None:
            self._answer = answer

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in _pieces(self._answer):
                await trio.sleep(1 if self._answer.manner == "drip" else 0)
                yield piece

    class MemoryTransport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            headers = {name.lower(): value for name, value in request.headers.items()}
            answer = rates.answer(request.url.raw_path.decode(), headers)
            await trio.sleep(rates.latency)
            match answer.manner:
                case "hang":
                    await trio.sleep_forever()
                case "reset":
                    raise httpx.ReadError("")
                case "close":
                    raise httpx.RemoteProtocolError("")
            return httpx.Response(answer.status, headers=answer.raw_headers, stream=Body(answer))

    return MemoryTransport()


def _pieces(answer: FakeAnswer) -> Iterator[bytes]:
    size = 1 if answer.manner == "drip" else 65536
    for start in range(0, len(answer.body), size):
        yield answer.body[start : start + size]


# On a port.


async def serve_rates(
    rates: FakeRates,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The fake on a port, as http://host:port/v1 and /v2; `started` gives the port."""

    async def handle(stream: trio.SocketStream) -> None:
        secured = tls and trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            await _serve_connection(rates, secured or stream)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass  # the client has gone, or is none
        finally:
            await trio.aclose_forcefully(stream)

    listeners = await trio.open_tcp_listeners(port, host=host)
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


async def _serve_connection(rates: FakeRates, stream: trio.abc.Stream) -> None:
    """The requests of one connection, one after the other."""
    connection = h11.Connection(h11.SERVER)
    while request := await _next_request(connection, stream):
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        answer = rates.answer(request.target.decode("latin-1"), headers)
        await trio.sleep(rates.latency)
        if answer.manner in ("hang", "reset", "close"):
            if answer.manner == "hang":
                await stream.receive_some()  # it has said all it wants to: it will go away
            if answer.manner == "reset" and isinstance(stream, trio.SocketStream):
                linger = struct.pack("ii", 1, 0)
                stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
            return
        length = (b"content-length", str(len(answer.body)).encode())
        head = h11.Response(status_code=answer.status, headers=[*answer.raw_headers, length])
        await stream.send_all(connection.send(head) or b"")
        for piece in _pieces(answer):
            await trio.sleep(1 if answer.manner == "drip" else 0)
            await stream.send_all(connection.send(h11.Data(data=piece)) or b"")
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            return
        connection.start_next_cycle()


async def _next_request(connection: h11.Connection, stream: trio.abc.Stream) -> h11.Request | None:
    """The next request, read to its end; None when the client has gone."""
    request = None
    event = connection.next_event()
    while not isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
        if isinstance(event, h11.Request):
            request = event
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        event = connection.next_event()
    return request
