"""Our link against the Autobahn testsuite: 301 cases of RFC 6455, judged by its fuzzing server.

    uv run scripts/check_autobahn.py
    uv run scripts/check_autobahn.py --cases '7.*'

The testsuite is a program for Python 2.7. Where pyenv, or the path, has one, the testsuite is
installed into a temporary folder that is removed at the end; elsewhere this says why it cannot
run, and exits with 0. The link under test echoes texts, as the testsuite wants it.

Prints how the cases ended. Exits with 1 when one fails that does not fail by design (we take no
binary messages, and none over 1 MiB; we offer no compression, whose cases are left out), and
when a violation of the protocol ended without a close frame of ours (section 7.1.7).
"""

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import trio

from ratebridge.errors import LinkFailed
from ratebridge.link import Address, Link, open_link
from ratebridge.link.dial import NetworkDial

AGENT: Final = "ratebridge"
CASES: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
BY_DESIGN: Final = (
    *("1.2.*", "9.2.*", "9.4.*", "9.6.*", "9.8.*"),  # binary
    *("9.1.4", "9.1.5", "9.1.6", "9.3.*"),  # texts of 4 MiB and more
)
GOOD: Final = {"OK", "NON-STRICT", "INFORMATIONAL"}
NORMAL: Final = 1000  # the close code
AT_A_TIME: Final = 8  # cases: many of them wait for a second or more
INSTALL_WITHIN: Final = 180.0  # s
START_WITHIN: Final = 30.0  # s
CASE_WITHIN: Final = 30.0  # s
LIMIT: Final = 150.0  # s for all cases

# A namespace package of Twisted's hangs on a .pth file, which only a site directory has read.
PROGRAM: Final = (
    "import site; site.addsitedir({site!r}); from autobahntestsuite import wstest; wstest.run()"
)


class CannotRun(Exception):
    """The testsuite cannot be had on this machine; the text says why."""


async def echo(link: Link) -> None:
    """Send back every text. Raises `LinkFailed` when the link has ended."""
    while True:
        link.put(await link.receive())


def find_python2() -> str:
    """A Python 2.7. Raises `CannotRun`."""
    python2 = shutil.which("python2.7")
    for python in Path.home().glob(".pyenv/versions/2.7.*/bin/python"):
        python2 = str(python)
    if python2 is None:
        raise CannotRun("there is no Python 2.7, neither of pyenv nor on the path")
    return python2


def install(python2: str, site: Path) -> None:
    """Put the testsuite into a folder. Raises `CannotRun`."""
    pip = [python2, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--target", str(site)]
    try:
        subprocess.run(
            [*pip, "autobahntestsuite"],
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_WITHIN,
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"pip took over {INSTALL_WITHIN:g} s") from None
    except subprocess.CalledProcessError as failed:
        raise CannotRun(f"pip cannot install it: {failed.stderr.strip()[-300:]}") from None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def fuzzing_server(python2: str, folder: Path, cases: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The testsuite's server; gives its port and the number of cases. Raises `CannotRun`."""
    port = free_port()
    url, reports, log = f"ws://127.0.0.1:{port}", folder / "reports", folder / "log"
    spec = folder / "spec.json"
    spec.write_text(json.dumps({"url": url, "outdir": str(reports), "cases": cases}))
    program = PROGRAM.format(site=str(folder / "site"))
    command = [python2, "-u", "-c", program, "-m", "fuzzingserver", "-s", str(spec), "-u", "0"]
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, stdout=stream, stderr=stream) as server,
    ):
        try:
            until = time.monotonic() + START_WITHIN
            while server.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
            told = re.search(r"will run (\d+) test cases", log.read_text())
            if told is None:
                raise CannotRun(f"the server does not start: {log.read_text().strip()[-300:]}")
            yield port, int(told[1])
        finally:
            server.kill()


async def visit(port: int, target: str) -> None:
    """One connection to the server, from its opening to its end."""
    address = Address("127.0.0.1", port, target, secure=False)
    try:
        with trio.move_on_after(CASE_WITHIN):
            async with trio.open_nursery() as nursery:
                await echo(await open_link(nursery, address, NetworkDial(address, None)))
    except* LinkFailed:  # as each link ends
        pass


async def run_cases(port: int, count: int) -> None:
    """Each case once, and the reports."""
    at_a_time = trio.CapacityLimiter(AT_A_TIME)

    async def run_case(number: int) -> None:
        async with at_a_time:
            await visit(port, f"/runCase?case={number}&agent={AGENT}")

    with trio.move_on_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                nursery.start_soon(run_case, number)
    await visit(port, f"/updateReports?agent={AGENT}")


def read_reports(reports: Path) -> dict[str, Any]:
    """What the server says of each case, by its number."""
    index = json.loads((reports / "index.json").read_text())[AGENT]
    return {
        case: json.loads((reports / told["reportfile"]).read_text()) for case, told in index.items()
    }


def judge(results: dict[str, Any]) -> list[str]:
    """What is wrong with the results, a line each."""
    wrong = []
    silent = []
    for case, result in sorted(results.items(), key=lambda item: [*map(int, item[0].split("."))]):
        ends = result["behavior"], result["behaviorClose"]
        by_design = any(fnmatch(case, pattern) for pattern in BY_DESIGN)
        if not (by_design or set(ends) <= GOOD):
            wrong.append(f"{case}: {ends[0]}, the close {ends[1]}: {result['result']}")
        # What a violation has to be closed with is not 1000; what we did close with is "remote".
        expected = result["expectedClose"]["closeCode"]
        if NORMAL not in expected and result["remoteCloseCode"] is None:
            silent.append(case)
    if silent:
        wrong.append(f"{len(silent)} violations without a close frame of ours: {' '.join(silent)}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=CASES, help="patterns (default: all 301)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ratebridge-autobahn-") as name:
        folder = Path(name)
        try:
            python2 = find_python2()
            install(python2, folder / "site")
            began = time.monotonic()
            with fuzzing_server(python2, folder, options.cases) as (port, count):
                trio.run(run_cases, port, count)
        except CannotRun as reason:
            print(f"skipped: {reason}")
            return 0
        results = read_reports(folder / "reports")
    ends = Counter(result["behavior"] for result in results.values())
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"{len(results)} cases in {time.monotonic() - began:.0f} s: {told}")
    wrong = judge(results)
    if len(results) < count:
        wrong.append(f"of {count} cases only these came to an end within {LIMIT:g} s")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
