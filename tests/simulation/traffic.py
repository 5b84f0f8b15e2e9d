"""The feed's requests and the allowed replies: an oracle that shares no code with the service."""

import json
import random
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import count
from typing import Final, Literal

import attrs

KNOWN: Final = ("USD", "GBP", "CZK", "PLN", "SEK")  # by every source
UNKNOWN: Final = ("BTC", "ZWL", "XXX")  # by all of them

AskKind = Literal["rate", "euro", "unknown", "bad"]


@attrs.frozen
class Ask:
    """A request. `id` is raw JSON, `head` and `tail` what must be echoed around the stake.

    Of kind "bad" it can be answered by an error only, and so is "unknown" (the currency).
    """

    number: int
    id: str
    kind: AskKind
    text: str
    stake: str = ""
    currency: str = ""
    instant: datetime | None = None
    head: str = ""
    tail: str = ""


class Traffic:
    """Requests and junk at will."""

    def __init__(self, chance: random.Random, utc_at: Callable[[float], datetime]) -> None:
        self._chance = chance
        self._utc_at = utc_at
        self._large_ids = chance.choice((0.0, 0.0, 0.0, 0.05))  # how often one is
        self._next_id = chance.randrange(1, 100_000)
        self._ids: list[str] = []
        self._numbers = count()  # of the requests

    def ask(self, now: float) -> Ask:
        """A request that is sent at trio time `now`."""
        chance = self._chance
        number = next(self._numbers)
        message_id = self._id()
        dice = chance.random()
        stake = chance.choice((f"{chance.uniform(1, 9999):.5f}", f"{chance.uniform(0, 99):.2f}"))
        if chance.random() < 0.05:
            stake = chance.choice(("0", "-0", "-17.5", "1e2", "0.000005", "123456789012345.678905"))
        instant = self._instant(now)
        when = f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03}Z"
        instant = instant.replace(microsecond=instant.microsecond // 1000 * 1000)
        kind: AskKind = "rate"
        currency = chance.choice(KNOWN)
        if dice < 0.1:
            kind, currency = "euro", "EUR"
        elif dice < 0.18:
            kind, currency = "unknown", chance.choice(UNKNOWN)
        elif dice < 0.26:
            kind = "bad"
            stake, currency, when = self._spoil(stake, currency, when, now)
        head = (
            f'{{"type":"message","id":{message_id},"payload":{{"marketId":{number % 7},'
            f'"selectionId":{number},"odds":2.20,"stake":'
        )
        tail = "}}" if chance.random() < 0.8 else ',"extra":{"a":[1.0,null]}},"more":"é"}'
        text = f'{head}{stake},"currency":"{currency}","date":"{when}"{tail}'
        return Ask(number, message_id, kind, text, stake, currency, instant, head, tail)

    def junk(self) -> tuple[bytes, str]:
        """A text that cannot be answered, and the service's word for the reason."""
        return self._chance.choice(
            (
                (b"not json", "not-json"),
                (b'{"type":"message","id":1', "not-json"),
                (b"[1,2]", "not-an-object"),
                (b'"heartbeat"', "not-an-object"),
                (b'{"id":7}', "no-type"),
                (b'{"type":"beat"}', "unknown-type"),
                (b'{"type":"message","payload":{}}', "no-id"),
                (b'{"type":"heartbeat"' + b" " * 65536 + b"}", "too-long"),
            )
        )

    def _id(self) -> str:
        """Mostly a number that grows; now and then one used before, or a string."""
        chance = self._chance
        if self._ids and chance.random() < 0.04:
            return chance.choice(self._ids)
        self._next_id += 1
        message_id = str(self._next_id) if chance.random() < 0.95 else f'"bet-{self._next_id}"'
        if chance.random() < self._large_ids:
            message_id = f'"{self._next_id}-{"x" * chance.choice((3_000, 20_000, 60_000))}"'
        self._ids.append(message_id)
        return message_id

    def _instant(self, now: float) -> datetime:
        chance = self._chance
        utc = self._utc_at(now)
        dice = chance.random()
        if dice < 0.15:
            return utc - timedelta(seconds=chance.uniform(0, 90))
        if dice < 0.25:
            return utc + timedelta(seconds=chance.uniform(0, 120))
        if dice < 0.35:
            return utc - timedelta(days=1)
        return utc - timedelta(days=30 + chance.randrange(4), seconds=chance.randrange(80_000))

    def _spoil(self, stake: str, currency: str, when: str, now: float) -> tuple[str, str, str]:
        ahead = self._utc_at(now) + timedelta(hours=2)
        return self._chance.choice(
            (
                ('"12.5"', currency, when),
                ("1e999999", currency, when),
                (stake, "usd", when),
                (stake, currency, "yesterday"),
                (stake, currency, "1998-12-31T12:00:00Z"),
                (stake, currency, f"{ahead:%Y-%m-%dT%H:%M:%SZ}"),
            )
        )


def to_euro(stake: str, units: Decimal, euro: Decimal) -> str:
    """The reply's stake: exact, rounded once, half to even, to five places, in plain notation."""
    cents = round(Fraction(Decimal(stake)) * Fraction(euro) / Fraction(units) * 10**5)
    whole, places = divmod(abs(cents), 10**5)
    text = f"{whole}.{places:05}".rstrip("0").rstrip(".")
    return f"-{text}" if cents < 0 else text


def day_of(ask: Ask, now: datetime) -> date:
    """The day whose table counts, for a request that comes at `now`: no later than today."""
    assert ask.instant is not None
    return min(ask.instant.date(), now.date())


_REPLY: Final = re.compile(
    r'(?P<stake>-?\d+(?:\.\d+)?),"currency":"EUR","date":"(?P<date>[-0-9T:.]{23}Z)"'
)
_NUMBER: Final = re.compile(r'"selectionId":(\d+)')


def number_of(reply: str) -> int | None:
    """The number of the request that a reply of the good kind echoes."""
    found = _NUMBER.search(reply)
    return int(found[1]) if found else None


def read_reply(ask: Ask, reply: str) -> tuple[str, datetime] | None:
    """The stake and the date of a good reply; None when anything else was not echoed as it came."""
    if not (reply.startswith(ask.head) and reply.endswith(ask.tail)):
        return None
    found = _REPLY.fullmatch(reply, len(ask.head), len(reply) - len(ask.tail))
    if found is None:
        return None
    return found["stake"], datetime.fromisoformat(found["date"])


def id_of(reply: str) -> str:
    """The id of a reply, as raw JSON."""
    return json.dumps(json.loads(reply)["id"])
