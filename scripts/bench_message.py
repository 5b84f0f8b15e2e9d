"""What one message costs: decode, convert and encode, beside the standard library's JSON.

    uv run scripts/bench_message.py [--rounds 500]

Both do the same to the sample message of the protocol: read it with exact
decimals, read its date, convert the stake, write the reply. The standard library
cannot write a Decimal, so it writes floats (`default=float`), as is the custom; its
answer is exact for this sample and not for all. The rounds of the two alternate and
the best of each counts. Told as well: a conversion alone, and how long the refusal
of each bad message of the tests takes.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from timeit import timeit

import msgspec

from ratebridge.conversion import plain, to_euro
from ratebridge.dates import wire_time
from ratebridge.errors import Refused, Unreadable
from ratebridge.messages import Request, decode, encode_reply

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import bad_messages

SAMPLE = (
    b'{"type":"message","id":456,"payload":{"marketId":123456,"selectionId":987654,"odds":2.2,'
    b'"stake":253.67,"currency":"USD","date":"2021-05-18T21:32:42.324Z"}}'
)
UNITS, EURO = Decimal("1.2222"), Decimal(1)  # the ECB's rate of that day
NOW = datetime(2021, 5, 18, 21, 32, 42, 412000, UTC)
PLACES = Decimal("0.00001")


def ours() -> bytes:
    request = decode(SAMPLE)
    assert isinstance(request, Request)
    return encode_reply(request, plain(to_euro(request.stake, UNITS, EURO)), wire_time(NOW))


def standard() -> bytes:
    message = json.loads(SAMPLE, parse_float=Decimal)
    payload = message["payload"]
    datetime.fromisoformat(payload["date"])
    payload["stake"] = (Decimal(payload["stake"]) * EURO / UNITS).quantize(PLACES)
    payload["currency"] = "EUR"
    payload["date"] = NOW.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps(message, default=float, separators=(",", ":")).encode()


def refuse(frame: bytes) -> None:
    try:
        decode(frame)
    except (Refused, Unreadable):
        return


def best(functions: dict[str, Callable[[], object]], rounds: int, number: int) -> dict[str, float]:
    """Microseconds a call, the best of all rounds; the functions take turns."""
    found = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            found[name] = min(found[name], timeit(function, number=number) / number * 1e6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="of 100 calls each (500)")
    rounds = parser.parse_args().rounds

    assert json.loads(ours()) == json.loads(standard())
    stake = Decimal("253.67")
    euro = to_euro(stake, UNITS, EURO)
    request = decode(SAMPLE)
    assert isinstance(request, Request)
    cost = best(
        {
            "ratebridge": ours,
            "standard library": standard,
            "decode": lambda: decode(SAMPLE),
            "to_euro": lambda: to_euro(stake, UNITS, EURO),
            "to_euro, base not the euro": lambda: to_euro(stake, UNITS, Decimal("0.8182")),
            "plain": lambda: plain(euro),
            "wire_time": lambda: wire_time(NOW),
            "encode_reply": lambda: encode_reply(request, "207.55196", "2021-05-18T21:32:42.412Z"),
        },
        rounds,
        100,
    )
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}; µs, best round\n")
    for name, micros in cost.items():
        print(f"{name:<32}{micros:8.2f}")
    ratio = cost["standard library"] / cost["ratebridge"]
    print(f"{'standard library to ratebridge':<32}{ratio:8.2f}")

    refusals: dict[str, Callable[[], object]] = {
        row.name: partial(refuse, row.frame)
        for row in bad_messages.ALL
        if row.outcome in ("refused", "dropped") and not row.late
    }
    slowest = sorted(best(refusals, 10, 1).items(), key=lambda item: -item[1])
    quick = sum(micros < 1000 for _, micros in slowest)
    print(f"\n{quick} of {len(slowest)} bad messages are refused within a millisecond; slowest:")
    for name, micros in slowest[:5]:
        print(f"  {name:<30}{micros:8.0f}")


if __name__ == "__main__":
    main()
