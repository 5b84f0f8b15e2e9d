"""How fast the service is, beside clients that do the same work with other websocket libraries.

    uv run --group bench scripts/bench.py            some 40 minutes
    uv run --group bench scripts/bench.py --quick    some 4 minutes
    uv run --group bench scripts/bench.py --tls      over TLS, beside the fastest peer
    uv run --group bench scripts/bench.py --audit    what an audit file costs

Starts a rates server that stands in for freecurrencyapi, and round by round each client
in a process of its own, with a feed of its own in this process: `ratebridge` at default
settings (but for the heartbeat timeout, as its feed rests while others are measured), and
the peers of bench_peers.py. The same requests come in the spellings of `SPELLINGS`. A load
goes to the clients in slices, a tenth of a second each in turn, so that what else the
machine does falls on all of them. Replies are checked against exact arithmetic where the
load leaves time for it. The results are ratios within a round: the median over the
rounds, the least and the greatest. Prints tables; writes bench.json and bench.svg
to the folder --out. Linux only.

The peer `node-ws` needs Node and its package ws, installed anywhere, with that
node_modules folder in NODE_PATH. What is not installed is left out, with a word.
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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from operator import mul
from pathlib import Path
from statistics import mean, median
from typing import Any

import attrs
import trustme
from bench_feed import CODES, SPELLINGS, Feed, make_requests, serve_rates, table
from bench_peers import NODE, PEERS
from bench_plot import plot

SERVICE = "ratebridge"
AUDITED = "with audit"  # the service, with an audit file
FLOOR = "floor"  # the peer that reads nothing of what it is asked
DAYS = 14  # that the requests are of, as the real feed's
LOADS = (1, 64, 1024)  # requests outstanding
PACE = 50.0  # requests a second, on the production side of "tens"
COLD = 50  # requests: the first second
USUAL = "as recorded"
PAGE = os.sysconf("SC_PAGE_SIZE")

Figures = dict[str, float]


@attrs.frozen
class Plan:
    """How long to measure."""

    rounds: int
    slices: int  # of each load
    paced: int  # requests at PACE


FULL = Plan(rounds=11, slices=10, paced=500)
QUICK = Plan(rounds=3, slices=5, paced=60)
SLICE = 0.1  # s
WARM = 0.03  # s before it, which do not count

# The bars of the speed that the service is to have: (figure, peer, least or most, ratio).
BARS = (
    ("rate_1", "picows", "least", 0.95),
    ("rate_1", FLOOR, "least", 0.85),
    ("warm_p50", "picows", "most", 1.1),
    *(
        (f"{figure}_{load} {spelling}", "picows", kind, 1.0)
        for spelling in SPELLINGS
        for load in (64, 1024)
        for figure, kind in (("rate", "least"), ("cpu", "most"))
    ),
)
LEAST_OF_USUAL = 0.8  # of the rate of the recorded spelling, for each other one
START_CPU = 0.18  # s, the bar for the start to the first heartbeat


@attrs.define
class Client:
    """A process under measurement, and its feed."""

    feed: Feed
    process: subprocess.Popen[bytes]
    started: float

    def cpu(self) -> float:
        """Seconds of CPU, of all its threads, by the scheduler's accounting."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> float:
        """Resident memory, MiB."""
        statm = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(statm.split()[1]) * PAGE / 2**20


class Bench:
    """The feeds, the rates, and how to start a client of theirs."""

    def __init__(self, out: Path, also: dict[str, str], *, tls: bool = False) -> None:
        self.out = out
        self.also = also
        self._scheme = "wss" if tls else "ws"
        self._tls = _server_tls() if tls else None
        self.feeds: dict[str, Feed] = {}  # of the clients that run
        self.requests = {spelling: make_requests(DAYS, spelling) for spelling in SPELLINGS}
        self._rates_port = serve_rates()
        self._tables = out / "tables.json"
        newest = datetime.now(UTC).date()
        days = (newest - timedelta(days=i) for i in range(40))
        self._tables.write_text(
            json.dumps(
                {str(day): {code: str(units) for code, units in table(day).items()} for day in days}
            )
        )

    @contextmanager
    def client(self, name: str) -> Iterator[Client]:
        """A client that is connected and has beaten once."""
        feed = Feed(self._tls)
        uri = f"{self._scheme}://127.0.0.1:{feed.port}/"
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
            if name == NODE:
                command = ["node", str(script.with_suffix(".cjs")), uri, str(self._tables)]
        else:
            command = [sys.executable, "-m", SERVICE]
            environment |= {
                "CURRENCY_ASSIGNMENT_WS_URI": uri,
                "VERIFY_SSL": "false",
                "FREECURRENCY_API_KEY": "none",
                "FREECURRENCY_API_URL": f"http://127.0.0.1:{self._rates_port}/v1",
                "RATEBRIDGE_PROVIDERS": "freecurrencyapi",
                "RATEBRIDGE_PLAUSIBILITY": "off",  # the rates are made up
                "RATEBRIDGE_HEARTBEAT_TIMEOUT": "600",
            }
            if name == AUDITED:
                trail = self.out / "audit.jsonl"
                trail.unlink(missing_ok=True)
                environment["RATEBRIDGE_AUDIT_FILE"] = str(trail)
            if name in self.also:
                environment["PYTHONPATH"] = self.also[name]
        with (self.out / f"{name.replace('/', '-')}.log").open("ab") as log:
            started = time.perf_counter()
            process = subprocess.Popen(
                command, env=environment, cwd=self.out, stdout=log, stderr=log
            )
            try:
                feed.use(self.requests[USUAL], exact=name not in PEERS)
                feed.accept()
                feed.wait_heartbeat()
                self.feeds[name] = feed
                yield Client(feed, process, started)
            finally:
                self.feeds.pop(name, None)
                process.send_signal(signal.SIGKILL)
                process.wait()
                feed.hang_up()

    def prepare(self, name: str) -> None:
        """Start once without measuring, so that what Python compiles is compiled."""
        with self.client(name) as client:
            if name != FLOOR:
                _fill_tables(client.feed)

    def measure(self, name: str, plan: Plan, figures: Figures) -> Iterator[None]:
        """All figures of one client in one round, in steps between which others have their turn."""
        with self.client(name) as client:
            feed = client.feed
            figures["start_wall"] = time.perf_counter() - client.started
            figures["start_cpu"] = client.cpu()
            if name != FLOOR:
                figures |= _latency("cold", feed.pace(PACE, COLD))
                _fill_tables(feed)
                before = client.cpu()
                figures |= _latency("warm", feed.pace(PACE, plan.paced))
                figures["cpu_paced"] = (client.cpu() - before) / plan.paced
            for spelling in SPELLINGS:
                feed.use(self.requests[spelling], exact=name not in PEERS)
                if name != FLOOR:
                    _fill_tables(feed)  # and check the replies
                for outstanding in LOADS if spelling == USUAL else LOADS[1:]:
                    key = str(outstanding) if outstanding == 1 else f"{outstanding} {spelling}"
                    rates, cpus = [], []
                    for _ in range(plan.slices):
                        yield
                        rate, cpu = feed.load(outstanding, WARM, SLICE, client.cpu)
                        rates.append(rate)
                        cpus.append(cpu)
                    figures[f"rate_{key}"] = mean(rates)
                    figures[f"cpu_{key}"] = sum(map(mul, rates, cpus)) / sum(rates)
            figures["memory"] = client.memory()

    def measure_round(self, names: list[str], plan: Plan) -> dict[str, Figures]:
        """The figures of all clients, which take turns."""
        found: dict[str, Figures] = {name: {} for name in names}
        turns = [self.measure(name, plan, figures) for name, figures in found.items()]
        while turns:
            for turn in turns.copy():
                for feed in self.feeds.values():
                    feed.rest()
                try:
                    next(turn)
                except StopIteration:
                    turns.remove(turn)
        return found


def _fill_tables(feed: Feed) -> None:
    """Ask for each day and currency once, so that the service has fetched what it needs."""
    feed.ask_all(DAYS * len(CODES), 64)


def _server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


def _latency(name: str, took: list[float]) -> Figures:
    ordered = sorted(took)
    return {f"{name}_p{of}": ordered[len(ordered) * of // 100] for of in (50, 99)}


# What is told.

ROWS = (
    ("rate_1", "requests/s, 1 outstanding", 1.0, "{:,.0f}"),
    ("cpu_1", "CPU µs a request, 1 outstanding", 1e6, "{:,.1f}"),
    *(
        (f"{figure}_{load} {spelling}", f"{title}, {load:,} outstanding, {spelling}", scale, form)
        for load in LOADS[1:]
        for figure, title, scale, form in (
            ("rate", "requests/s", 1.0, "{:,.0f}"),
            ("cpu", "CPU µs a request", 1e6, "{:,.1f}"),
        )
        for spelling in SPELLINGS
    ),
    ("cpu_paced", "CPU µs a request, 50 a second, heartbeats and all", 1e6, "{:,.0f}"),
    ("warm_p50", "round trip ms, 50 a second, p50", 1e3, "{:.2f}"),
    ("warm_p99", "round trip ms, 50 a second, p99", 1e3, "{:.2f}"),
    ("cold_p50", "round trip ms, the first second, p50", 1e3, "{:.2f}"),
    ("cold_p99", "round trip ms, the first second, p99", 1e3, "{:.2f}"),
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
        (
            key,
            peer,
            f"at {kind} {bar:g}",
            median_of := ratios[key][peer]["median"],
            median_of >= bar if kind == "least" else median_of <= bar,
        )
        for key, peer, kind, bar in BARS
        if peer in ratios[key]
    ]
    for load in LOADS[1:]:
        usual = [one[SERVICE][f"rate_{load} {USUAL}"] for one in rounds]
        for spelling in SPELLINGS:
            rates = [one[SERVICE][f"rate_{load} {spelling}"] for one in rounds]
            ratio = median(a / b for a, b in zip(rates, usual, strict=True))
            bar = (
                f"rate_{load} {spelling}",
                USUAL,
                f"at least {LEAST_OF_USUAL}",
                ratio,
                ratio >= 0.8,
            )
            bars.append(bar)
    start = figures["start_cpu"][SERVICE]["median"]
    bars.append(("start_cpu", "", f"at most {START_CPU:g} s", start, start <= START_CPU))
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
    for figure, beside, bar, ratio, met in summary["bars"]:
        print(f"  {figure:<34}{beside:<14}{bar:<16}{ratio:.3g}  {'met' if met else 'NOT MET'}")


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


def what_node_lacks() -> str:
    """Why the peer of Node cannot run; empty if it can."""
    try:
        tried = subprocess.run(["node", "-e", "require('ws')"], capture_output=True, check=False)
    except FileNotFoundError:
        return "there is no node"
    return "its package ws is not found by NODE_PATH" if tried.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few short rounds: a first look")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    parser.add_argument("--out", type=Path, help="folder of the results (default: a temporary one)")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, separated by commas")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another copy of the package, by the folder it is in: before and after a change",
    )
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--tls", action="store_true", help="over TLS, beside picows alone")
    alone.add_argument("--audit", action="store_true", help="beside itself with an audit file")
    options = parser.parse_args()
    if options.tls:
        options.peers = "picows"
    if options.audit:
        options.peers = AUDITED
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
    if NODE in names and (missing := what_node_lacks()):
        print(f"{NODE} is left out: {missing}")
        names.remove(NODE)
    for name in names:
        bench.prepare(name)
    gc.freeze()
    rounds: list[dict[str, Figures]] = []
    for number in range(plan.rounds):
        turn = number % len(names)  # another one begins each round
        found = bench.measure_round(names[turn:] + names[:turn], plan)
        rounds.append({name: found[name] for name in names})
        rates = "  ".join(f"{name} {found[name][f'rate_64 {USUAL}']:,.0f}" for name in names)
        print(f"round {number + 1} of {plan.rounds}, requests/s at 64: {rates}", flush=True)
    results["rounds"] = rounds
    results |= summarize(rounds)
    tell(results)
    (out / "bench.json").write_text(json.dumps(results, indent=1))
    (out / "bench.svg").write_text(plot(results))
    print(f"\nwritten: {out / 'bench.json'}, {out / 'bench.svg'}")


if __name__ == "__main__":
    main()
