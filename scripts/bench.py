"""How fast the service is, beside clients that do the same work with other websocket libraries.

    uv run --group bench scripts/bench.py            some 15 minutes
    uv run --group bench scripts/bench.py --quick    under 2 minutes
    uv run --group bench scripts/bench.py --tls      over TLS, beside the fastest peer

Starts a feed in this process, a rates server that stands in for
freecurrencyapi, and in turn, round by round, each client in a process of its
own: `ratebridge` at default settings, and the peers of bench_peers.py. Replies
are checked against exact arithmetic where the load leaves time for it. The results
are ratios within a round: the median over the rounds, the least and the greatest.
Prints tables; writes bench.json and bench.svg to the folder --out. Linux only.
"""

import argparse
import gc
import json
import os
import platform
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import trustme
from bench_feed import Asked, Feed, Rates, make_requests, serve_rates
from bench_peers import PEERS
from bench_plot import plot

SERVICE = "ratebridge"
FLOOR = "floor"  # the peer that reads nothing of what it is asked
DAYS = 14  # that the requests are of, as the real feed's
LOADS = (1, 64, 1024)  # requests outstanding
PACE = 50.0  # requests a second, on the production side of "tens"
COLD = 50  # requests: the first second
SLOW = 0.5  # s that a slow source takes
EXPIRY_LIFE = 10  # s of a table
EXPIRY_DAYS = 7
MILLION = 1_000_000
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")

Figures = dict[str, float]


@attrs.frozen
class Plan:
    """How long to measure."""

    rounds: int
    warm: float  # s of each load that do not count
    seconds: float  # of each load
    paced: int  # requests at PACE
    growth: int  # times that each point of the growth is measured
    growth_seconds: float


FULL = Plan(rounds=7, warm=0.5, seconds=3.0, paced=1000, growth=3, growth_seconds=1.5)
QUICK = Plan(rounds=3, warm=0.2, seconds=0.5, paced=60, growth=1, growth_seconds=0.4)

# The bars of the speed that the service is to have: (figure, peer, least or most, ratio).
BARS = (
    ("rate_1", "picows", "least", 1.0),
    ("cpu_1", "picows", "most", 1.2),
    ("rate_64", "picows", "least", 1.1),
    ("cpu_64", "picows", "most", 1.0),
    ("rate_1024", "picows", "least", 1.5),
    ("warm_p50", "picows", "most", 1.0),
    ("warm_p99", "picows", "most", 1.0),
)
START_CPU = 0.15  # s, the bar for the start to the first heartbeat


@attrs.define
class Client:
    """A process under measurement."""

    process: subprocess.Popen[bytes]
    started: float

    def cpu(self) -> float:
        """Seconds of CPU, of all its threads, by the system's accounting."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """Resident memory, MiB."""
        return int(self._read("statm").split()[1]) * PAGE / 2**20

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text()


class Bench:
    """The feed, the rates, and how to start a client of theirs."""

    def __init__(self, out: Path, also: dict[str, str], *, tls: bool = False) -> None:
        self.out = out
        self.also = also
        self.rates = Rates()
        self._scheme = "wss" if tls else "ws"
        self.feed = Feed(_server_tls() if tls else None)
        self.requests = make_requests(self.rates, DAYS)
        self._rates_port = serve_rates(self.rates)
        self._tables = out / "tables.json"
        newest = datetime.now(UTC).date()
        days = (newest - timedelta(days=i) for i in range(40))
        self._tables.write_text(
            json.dumps(
                {
                    str(day): {code: str(units) for code, units in self.rates.table(day).items()}
                    for day in days
                }
            )
        )

    @contextmanager
    def client(
        self, name: str, requests: list[Asked] | None = None, **settings: str
    ) -> Iterator[Client]:
        """A client that is connected and has beaten once; `settings` are the service's."""
        uri = f"{self._scheme}://127.0.0.1:{self.feed.port}/"
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.lower().endswith("_proxy")
            and not key.startswith("RATEBRIDGE_")
            and key != "PYTHONDONTWRITEBYTECODE"
        }
        # Compiled code is kept, as in any installation, but not in anybody's folders.
        environment["PYTHONPYCACHEPREFIX"] = str(self.out / "pycache")
        if name in PEERS:
            script = Path(__file__).with_name("bench_peers.py")
            command = [sys.executable, str(script), name, uri, str(self._tables)]
        else:
            command = [sys.executable, "-m", SERVICE]
            environment |= {
                "CURRENCY_ASSIGNMENT_WS_URI": uri,
                "VERIFY_SSL": "false",
                "FREECURRENCY_API_KEY": "none",
                "FREECURRENCY_API_URL": f"http://127.0.0.1:{self._rates_port}/v1",
                "FRANKFURTER_URL": f"http://127.0.0.1:{self._rates_port}/v2",
                **settings,
            }
            if name in self.also:
                environment["PYTHONPATH"] = self.also[name]
        with (self.out / f"{name.replace('/', '-')}.log").open("ab") as log:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, cwd=self.out, stdout=log, stderr=log
            )
            client = Client(process, started)
            try:
                self.feed.use(requests or self.requests)
                self.feed.accept()
                self.feed.wait_heartbeat()
                yield client
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
                self.feed.hang_up()

    def prepare(self, name: str) -> None:
        """Start once without measuring, so that what Python compiles is compiled."""
        with self.client(name):
            if name != FLOOR:
                self._fill_tables()

    def _fill_tables(self) -> None:
        """Ask for each day and currency once, so that the service has fetched what it needs."""
        self.feed.ask_all(DAYS * len(self.rates.codes), 64)

    def measure(self, name: str, plan: Plan) -> Figures:
        """All figures of one client in one round."""
        feed = self.feed
        figures: Figures = {}
        with self.client(name) as client:
            figures["start_wall"] = time.perf_counter() - client.started
            figures["start_cpu"] = client.cpu()
            if name != FLOOR:
                figures |= _latency("cold", feed.pace(PACE, COLD))
                self._fill_tables()
                before = client.cpu()
                figures |= _latency("warm", feed.pace(PACE, plan.paced))
                figures["cpu_paced"] = (client.cpu() - before) / plan.paced
            for outstanding in LOADS:
                load = feed.load(outstanding, plan.warm, plan.seconds, client.cpu)
                figures[f"rate_{outstanding}"] = load.requests / load.seconds
                figures[f"cpu_{outstanding}"] = (load.after - load.before) / load.requests
            figures["memory"] = client.memory()
        return figures

    def million(self, name: str) -> Figures:
        """Resident memory at a hundred thousand requests and at each further fifth of a million."""
        with self.client(name) as client:
            figures = {"0": client.memory()}
            done = 0
            for mark in (100_000, *range(200_000, MILLION + 1, 200_000)):
                self.feed.load_until(64, mark - done)
                done = mark
                figures[str(mark)] = client.memory()
        return figures

    def expiry(self) -> dict[str, Figures]:
        """The time of round trips while tables end, from a source of `SLOW`, and while none do."""
        found = {}
        for title, life in (("while none end", 7200), ("over two ends", EXPIRY_LIFE)):
            self.rates.latency = SLOW
            with self.client(SERVICE, RATEBRIDGE_CACHE_TTL=str(life)):
                self.feed.ask_all(EXPIRY_DAYS * len(self.rates.codes), 64)
                found[title] = _latency("", self.feed.pace(PACE, int(2.5 * EXPIRY_LIFE * PACE)))
            self.rates.latency = 0.0
        return found

    # How cost grows.

    def growth(self, plan: Plan) -> dict[str, Figures]:
        """Requests a second of the service, by what grows and how large it is."""

        def rate(outstanding: int = 64) -> float:
            seconds = plan.growth_seconds
            load = self.feed.load(outstanding, seconds / 3, seconds, lambda: None)
            return load.requests / load.seconds

        def points(values: tuple[int, ...], measure: Callable[[int], float]) -> Figures:
            found: dict[int, list[float]] = {value: [] for value in values}
            for _ in range(plan.growth):
                for value in values:
                    found[value].append(measure(value))
            return {str(value): median(rates) for value, rates in found.items()}

        def with_tables(days: int) -> float:
            self.feed.use(make_requests(self.rates, days))
            self.feed.ask_all(days, 64)
            return rate()

        def with_currencies(count: int) -> float:
            self.rates.codes = _codes(count)
            requests = make_requests(self.rates, DAYS)
            with self.client(SERVICE, requests):
                self.feed.ask_all(DAYS * count, 64)
                return rate()

        def with_unknown(percent: int) -> float:
            self.feed.use(make_requests(self.rates, DAYS, unknown=percent / 100))
            self._fill_tables()
            return rate()

        with self.client(SERVICE):
            self._fill_tables()
            found = {
                "requests outstanding": points((1, 10, 100, 1000, 10_000), rate),
                "percent in an unknown currency": points((0, 33, 100), with_unknown),
                "tables held": points((1, 8, 64), with_tables),
            }
        codes = self.rates.codes
        found["currencies in a table"] = points((2, 33, 160, 500), with_currencies)
        self.rates.codes = codes
        return found


def _server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def _codes(count: int) -> list[str]:
    letters = [chr(65 + i) for i in range(26)]
    return ["EUR", *(f"X{a}{b}" for a in letters for b in letters)][:count]


def _latency(name: str, took: list[float]) -> Figures:
    ordered = sorted(took)
    name = name and f"{name}_"
    return {
        f"{name}p50": ordered[len(ordered) // 2],
        f"{name}p99": ordered[int(0.99 * len(ordered))],
        f"{name}p99.9": ordered[int(0.999 * len(ordered))],
        f"{name}max": ordered[-1],
    }


# What is told.

ROWS = (
    ("rate_1", "requests/s, 1 outstanding", 1.0, "{:,.0f}"),
    ("rate_64", "requests/s, 64 outstanding", 1.0, "{:,.0f}"),
    ("rate_1024", "requests/s, 1,024 outstanding", 1.0, "{:,.0f}"),
    ("cpu_1", "CPU µs a request, 1 outstanding", 1e6, "{:,.1f}"),
    ("cpu_64", "CPU µs a request, 64 outstanding", 1e6, "{:,.1f}"),
    ("cpu_1024", "CPU µs a request, 1,024 outstanding", 1e6, "{:,.1f}"),
    ("cpu_paced", "CPU µs a request, 50 a second, heartbeats and all", 1e6, "{:,.0f}"),
    ("warm_p50", "round trip ms, 50 a second, p50", 1e3, "{:.2f}"),
    ("warm_p99", "round trip ms, 50 a second, p99", 1e3, "{:.2f}"),
    ("warm_max", "round trip ms, 50 a second, max", 1e3, "{:.2f}"),
    ("cold_p50", "round trip ms, the first second, p50", 1e3, "{:.2f}"),
    ("cold_p99", "round trip ms, the first second, p99", 1e3, "{:.2f}"),
    ("cold_max", "round trip ms, the first second, max", 1e3, "{:.2f}"),
    ("start_cpu", "start to first heartbeat, CPU s", 1.0, "{:.2f}"),
    ("start_wall", "start to first heartbeat, s", 1.0, "{:.2f}"),
    ("memory", "resident MiB at the end", 1.0, "{:.0f}"),
)


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def summarize(rounds: list[dict[str, Figures]]) -> dict[str, Any]:
    """The median figures, and the service's ratio to each other client within a round."""
    names = list(rounds[0])
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for key, *_ in ROWS:
        having = [name for name in names if key in rounds[0][name]]
        figures[key] = {name: _spread([one[name][key] for one in rounds]) for name in having}
        ratios[key] = {
            name: _spread([one[SERVICE][key] / (one[name][key] or 1e-9) for one in rounds])
            for name in having
            if name != SERVICE
        }
    bars = [
        {
            "figure": key,
            "peer": peer,
            "bar": f"{'at least' if kind == 'least' else 'at most'} {bar:g}",
            "ratio": (ratio := ratios[key][peer]["median"]),
            "met": ratio >= bar if kind == "least" else ratio <= bar,
        }
        for key, peer, kind, bar in BARS
        if peer in ratios[key]
    ]
    start = figures["start_cpu"][SERVICE]["median"]
    bars.append(
        {
            "figure": "start_cpu",
            "peer": "",
            "bar": f"at most {START_CPU:g} s",
            "ratio": start,
            "met": start <= START_CPU,
        }
    )
    return {"figures": figures, "ratios": ratios, "bars": bars}


def tell(summary: dict[str, Any]) -> None:
    for key, title, scale, form in ROWS:
        print(f"\n{title}")
        for name, of in summary["figures"][key].items():
            line = f"  {name:<16}{form.format(of['median'] * scale):>10}"
            ratio = summary["ratios"][key].get(name)
            if ratio is not None:
                line += f"   ratebridge: x {ratio['median']:<6.3g}"
                line += f"({ratio['least']:.3g} to {ratio['most']:.3g})"
            print(line)
    print("\nthe bars")
    for bar in summary["bars"]:
        print(
            f"  {bar['figure']:<10}{bar['peer']:<16}{bar['bar']:<14}"
            f"{bar['ratio']:.3g}  {'met' if bar['met'] else 'NOT MET'}"
        )


def tell_growth(growth: dict[str, Figures]) -> None:
    print("\nrequests/s of ratebridge, as grows the number of")
    for what, points in growth.items():
        line = "   ".join(f"{int(value):,}: {rate:,.0f}" for value, rate in points.items())
        print(f"  {what:<32}{line}")


def tell_expiry(expiry: dict[str, Figures]) -> None:
    print(f"\nround trip ms at {PACE:g} a second, of tables whose source takes {SLOW:g} s")
    for what, points in expiry.items():
        line = "   ".join(f"{key} {value * 1e3:.2f}" for key, value in points.items())
        print(f"  {what:<16}{line}")


def tell_memory(memory: dict[str, Figures]) -> None:
    print("\nresident MiB after so many requests")
    for name, points in memory.items():
        line = "   ".join(f"{int(done):,}: {size:.1f}" for done, size in points.items())
        print(f"  {name:<16}{line}")


def machine() -> dict[str, Any]:
    """What the figures are of."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ("trio", "trio-websocket", "wsproto", "msgspec", "websockets", "aiohttp", "picows")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few short rounds: a first look")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    parser.add_argument("--out", type=Path, help="folder of the results (default: a temporary one)")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, separated by commas")
    parser.add_argument("--million", action="store_true", help="memory over a million requests")
    parser.add_argument("--expiry", action="store_true", help="round trips while tables end")
    parser.add_argument("--no-growth", action="store_true", help="leave out how cost grows")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another copy of the package, by the folder it is in: before and after a change",
    )
    parser.add_argument("--tls", action="store_true", help="over TLS, beside picows alone")
    options = parser.parse_args()
    if options.tls:
        options.peers = "picows"
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = attrs.evolve(plan, rounds=options.rounds)
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="ratebridge-bench-"))
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    also = dict(pair.split("=", 1) for pair in options.also)
    results: dict[str, Any] = {"machine": machine(), "plan": attrs.asdict(plan)}
    print(json.dumps(results["machine"]))

    folders = {name: str(Path(path).resolve()) for name, path in also.items()}
    bench = Bench(out, folders, tls=options.tls)
    names = [SERVICE, *also, *(name for name in options.peers.split(",") if name)]
    for name in names:
        bench.prepare(name)
    gc.freeze()
    rounds: list[dict[str, Figures]] = []
    for number in range(plan.rounds):
        turn = number % len(names)  # another one begins each round
        found = {name: bench.measure(name, plan) for name in names[turn:] + names[:turn]}
        rounds.append({name: found[name] for name in names})
        rates = "  ".join(f"{name} {found[name]['rate_64']:,.0f}" for name in names)
        print(f"round {number + 1} of {plan.rounds}, requests/s at 64: {rates}", flush=True)
    results["rounds"] = rounds
    results |= summarize(rounds)
    tell(results)
    if not options.no_growth:
        results["growth"] = bench.growth(plan)
        tell_growth(results["growth"])
    if options.expiry:
        results["expiry"] = bench.expiry()
        tell_expiry(results["expiry"])
    if options.million:
        results["memory"] = {name: bench.million(name) for name in [SERVICE, *also]}
        tell_memory(results["memory"])
    (out / "bench.json").write_text(json.dumps(results, indent=1))
    (out / "bench.svg").write_text(plot(results))
    print(f"\nwritten: {out / 'bench.json'}, {out / 'bench.svg'}")


if __name__ == "__main__":
    main()
