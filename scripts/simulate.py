"""Run the simulation: the whole service against a faulty feed and faulty sources, seed by seed.

Each seed is a run of its own: the scheduler of trio, the faults, the traffic and
the stop are drawn from it, and the clock is virtual. What must hold is judged by
tests/simulation/checker.py. Prints the faults that were met, how much was
simulated, and the seed of every run that broke an invariant; exits with 1 if any did.

    uv run scripts/simulate.py --seeds 10000 --jobs 2
    uv run scripts/simulate.py --seed 4711 --log        one run again, with its log
    uv run scripts/simulate.py --inject no-poison        seeds until an injected bug is found
"""

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulation import INJECTED_BUGS, Report, simulate

HUNG = 300.0  # s of real time for a run that takes a fraction of one
AT_A_TIME = 200  # seeds handed to the processes ahead of the report
REPORT_EVERY = 10.0  # s


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--length", type=float, help="simulated seconds at most, not by the seed")
    parser.add_argument(
        "--inject", choices=INJECTED_BUGS, help="inject a bug, and stop when it is found"
    )
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--log", action="store_true", help="print the log of --seed")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options)
    return run(options)


def replay(options: argparse.Namespace) -> int:
    """One seed, with its log if that is wanted."""
    log = print if options.log else None
    report = simulate(options.seed, length=options.length, inject=options.inject, log=log)
    for violation in report.violations:
        print(violation)
    tell_figures([report], 0.0)
    return 1 if report.violations else 0


def run(options: argparse.Namespace) -> int:
    """Many seeds, in their order."""
    began = told = time.monotonic()
    reports: list[Report] = []
    seeds = iter(range(options.first, options.first + options.seeds))
    for report in simulate_all(seeds, options):
        reports.append(report)
        if report.violations:
            again = f" --length {options.length}" if options.length is not None else ""
            print(f"seed {report.seed}{again}: {len(report.violations)} violations")
            for violation in report.violations[:3]:
                print(f"    {violation[:2000]}", flush=True)
            if options.inject is not None:
                convicted = any(
                    INJECTED_BUGS[options.inject].convicts in v for v in report.violations
                )
                if convicted:
                    print(f"{options.inject}: found by seed number {len(reports)}")
                    return 0
        if time.monotonic() - told > REPORT_EVERY:
            told = time.monotonic()
            tell_progress(reports, told - began)
    tell_faults(reports)
    tell_figures(reports, time.monotonic() - began)
    if options.inject is not None:
        print(f"{options.inject}: not found")
        return 1
    return 1 if any(report.violations for report in reports) else 0


def simulate_all(seeds: Iterator[int], options: argparse.Namespace) -> Iterator[Report]:
    """The reports of the seeds, in order."""
    one = partial(guarded, length=options.length, inject=options.inject)
    if options.jobs == 1:
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(options.jobs) as processes:
        while some := list(islice(seeds, AT_A_TIME)):
            yield from processes.map(one, some, chunksize=5)


def guarded(seed: int, *, length: float | None, inject: str | None) -> Report:
    """One run; should it hang, the process ends with a traceback of where."""
    faulthandler.dump_traceback_later(HUNG, exit=True)
    try:
        return simulate(seed, length=length, inject=inject)
    except Exception as error:
        error.add_note(f"in the simulation of seed {seed}")
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()


def tell_progress(reports: list[Report], seconds: float) -> None:
    hours = sum(report.seconds for report in reports) / 3600
    failed = sum(bool(report.violations) for report in reports)
    print(
        f"{len(reports)} seeds, {hours:.1f} simulated hours in {seconds:.0f} s, "
        f"{failed} seeds with violations",
        flush=True,
    )


def tell_faults(reports: list[Report]) -> None:
    faults: Counter[str] = Counter()
    for report in reports:
        faults += report.faults
    for name, count in sorted(faults.items()):
        print(f"{count:9}  {name}")


def tell_figures(reports: list[Report], seconds: float) -> None:
    print(
        f"{sum(report.links for report in reports)} links, "
        f"{sum(report.received for report in reports)} requests received, "
        f"{sum(report.replies for report in reports)} replies written, "
        f"{sum(report.undelivered for report in reports)} undelivered"
    )
    tell_progress(reports, seconds)


if __name__ == "__main__":
    sys.exit(main())
