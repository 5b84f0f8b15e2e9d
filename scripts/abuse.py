"""Attack the real process on loopback, and compare the cost with the budgets.

    uv run scripts/abuse.py
    uv run scripts/abuse.py --only h2c-flood
    uv run scripts/abuse.py --soak 20    a fault every few seconds for 20 minutes, and the balance

Each row is an attack by a peer: the feed, a rate source, clients of the status port, a reader of
the log, whoever sends signals. The first rows may cost something; they run one after the other,
each against a service of its own, and are measured:

    memory  MiB by which the resident memory grew, at its peak             budget   64
    gap     s, the longest between two of our heartbeats, as the feed saw  budget  1.5
    p99     ms that replies took at 50 requests a second                   budget  100
    log     lines of the most frequent kind (a row is under a minute)      budget   10

    waited  s that the service was ready to run and had no core: the budgets of gap and p99 are
            greater by that share, as they hold of a machine that has a core for it

"-" means that there is nothing to measure: a feed that does not read sees no heartbeat, and a
request after a flood waits for the flood. The other rows compare what was seen with what is
expected. In every row SIGTERM must end the service with 0. Exits with 1 if anything fails. Linux
only.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from math import inf
from pathlib import Path
from typing import Final

import trio
from abuse_rows import JUDGED, MEASURED, Row
from abuse_scene import SECONDS, Scene
from abuse_soak import soak

MEMORY, GAP, P99, LINES = 64.0, 1.5, 100.0, 10  # the budgets, in the units above
AT_A_TIME: Final = 4  # rows that are not measured


def name_of(row: Row) -> str:
    return str(getattr(row, "__name__", "soak")).replace("_", "-")


async def run_row(row: Row, *, measured: bool) -> bool:
    """One attack, and once more if it breaks a budget: a machine may have been busy elsewhere."""
    return await attack(row, measured=measured) or await attack(row, measured=measured)


async def attack(row: Row, *, measured: bool) -> bool:
    """One attack and its lines; whether all is well."""
    with tempfile.TemporaryDirectory(prefix="ratebridge-abuse-") as folder:
        async with trio.open_nursery() as nursery:
            scene = Scene(nursery, Path(folder))
            try:
                await row(scene)
                await scene.stop()
            finally:
                for process in scene.processes:
                    process.kill()
            nursery.cancel_scope.cancel()
        figures = told_figures(scene) if measured else ""
    good = "!" not in figures and all(good for _, good in scene.findings)
    print(f"{name_of(row):18}{figures}  {'ok' if good else 'BROKEN'}")
    for told, fine in scene.findings:
        print(f"    {'ok' if fine else 'BROKEN':6} {told}")
    sys.stdout.flush()
    return good


def told_figures(scene: Scene) -> str:
    """The figures, each with a mark where it is above its budget."""
    kinds = Counter(
        f"{event['event']} {event.get('kind') or event.get('reason') or ''}" for event in scene.log
    )
    [(kind, lines)] = kinds.most_common(1) or [("", 0)]
    delays = sorted(scene.feed.delays)
    p99 = delays[len(delays) * 99 // 100] * 1000 if delays else None
    gap = max(scene.feed.gaps, default=inf) if scene.feed.reads else None
    waited = scene.after.waited - scene.before.waited
    share = 1 - min(waited / SECONDS, 0.9)
    figures = [
        (scene.after.peak - scene.before.memory, MEMORY, 1),
        (gap, GAP / share, 2),
        (p99, P99 / share, 1),
        (lines, LINES, 0),
    ]
    text = ""
    for figure, budget, places in figures:
        mark = "!" if figure is not None and figure > budget else " "
        text += ("-" if figure is None else f"{figure:.{places}f}").rjust(8) + mark
    return f"{text}{waited:7.2f}  " + (kind if lines > LINES else "")


async def run_rows(only: str | None) -> bool:
    """All rows, or one; whether all is well."""
    print(f"{'':18}{'memory':>8} {'gap':>8} {'p99':>8} {'log':>8} {'waited':>7}")
    print(f"{'budget':18}{MEMORY:8.1f} {GAP:8.2f} {P99:8.1f} {LINES:8}", flush=True)
    results = [
        await run_row(row, measured=True) for row in MEASURED if only in (None, name_of(row))
    ]
    limiter = trio.CapacityLimiter(AT_A_TIME)

    async def judge(row: Row) -> None:
        async with limiter:
            results.append(await run_row(row, measured=False))

    async with trio.open_nursery() as nursery:
        for row in JUDGED:
            if only in (None, name_of(row)):
                nursery.start_soon(judge, row)
    return all(results)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only soak it for so long")
    parser.add_argument("--seed", type=int, default=1, help="of the faults of a soak (default: 1)")
    names = [name_of(row) for row in (*MEASURED, *JUDGED)]
    parser.add_argument("--only", choices=names, metavar="ROW", help=", ".join(names))
    options = parser.parse_args()
    if not Path("/proc/self/status").exists() or not hasattr(signal, "SIGSTOP"):
        print("skipped: it needs /proc and the signals of Linux")
        return 0
    began = time.monotonic()
    if options.soak is not None:
        row = partial(soak, minutes=options.soak, seed=options.seed)
        good = trio.run(partial(attack, row, measured=False))
    else:
        good = trio.run(run_rows, options.only)
    print(f"{'all is well' if good else 'BROKEN'}, in {time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
