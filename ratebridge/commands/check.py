"""Tries the settings against the real feed and the real sources, and reports what works.

Each step prints a line when it is done: a mark, the step, what was found, and after
a failure a hint; or all of them become one JSON document. After a failure the steps that
need it are skipped.

For a few seconds it is another client of the feed. Requests that come to it are
counted and not answered. It takes two calls of each source's quota.
"""

import argparse
import json
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TextIO

import attrs
import trio

from ..app import Dependencies, feed_dial, make_sources
from ..errors import FetchOutcome, LinkFailed, Loss, Refused, SourceFailed, Unreadable
from ..link import open_link
from ..link.address import Address
from ..link.dial import add_tls, tcp_failure
from ..link.link import OPEN_WITHIN
from ..link.tls import tls_context
from ..link.upgrade import UpgradeOptions
from ..messages import HEARTBEAT, Heartbeat, clipped, decode
from ..providers.http import HttpClient
from ..providers.registry import provider
from ..providers.source import Source
from ..reporting.logs import configure_logs
from ..settings import FEED, Settings, load_settings, unknown_in_words
from ..signals import run_unless_stopped
from .options import add_command

LISTEN: Final = 1.75  # heartbeat timeouts: 3.5 s by default
ENOUGH: Final = 3  # heartbeats: two gaps between them
PAST: Final = timedelta(days=28)  # the age of the second table, as in real traffic
NORMAL_CLOSURE: Final = 1000  # RFC 6455, 7.4.1


def declare(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "check",
        run,
        "tries the settings against the real feed and sources, and reports what works",
        ("ratebridge check", "a line for each step; exit code 1 if one fails"),
        ("ratebridge check && ratebridge", "the service, only if every step succeeds"),
        description=__doc__,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with all steps")


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 if a step failed, else 0."""
    settings = load_settings(env_file=getattr(options, "env_file", None))
    configure_logs("error", "auto")
    report = Report(sys.stdout, as_json=options.json)
    return 0 if run_unless_stopped(partial(check, settings, report)) else 1


@attrs.frozen(eq=False)
class Broken(Exception):
    """A failed step, as text for people."""

    text: str
    hint: str = ""


Done = Callable[..., None]
"""Reports the step that is done, by what was found as text, and another mark than "ok"."""


class Report:
    """Prints each step as it is done, and counts them; in JSON, prints all at the end.

    Args:
        out: where to, such as standard output.
        as_json: one document instead of lines: `ok`, and `steps`, each with its `step`, its
            `result` ("ok", "fail" or "skip"), `text` and `hint`.
    """

    def __init__(self, out: TextIO, *, as_json: bool = False) -> None:
        self._out = out
        self._as_json = as_json
        self._steps: list[dict[str, str]] = []
        self.counts: Counter[str] = Counter()

    def line(self, mark: str, name: str, text: str, hint: str = "") -> None:
        """Report a step. `mark` is "ok", "FAIL" or "skip"; a hint has a line of its own."""
        self.counts[mark] += 1
        self._steps.append({"step": name, "result": mark.lower(), "text": text, "hint": hint})
        if self._as_json:
            return
        print(f"{mark:<4}  {name:<21}  {text}", file=self._out, flush=True)
        if hint:
            print(f"{'':27}  hint: {hint}", file=self._out, flush=True)

    @contextmanager
    def steps(self, *names: str, hints: Mapping[str, str] = MappingProxyType({})) -> Iterator[Done]:
        """Report these steps, which the body takes in their order, calling `done` after each.

        What it raises fails the step that is not done, and the rest is skipped. `hints` are a
        source's own, by outcome.
        """
        left = list(names)

        def done(text: str, mark: str = "ok") -> None:
            self.line(mark, left.pop(0), text)

        try:
            yield done
        except (Broken, LinkFailed, SourceFailed, trio.TooSlowError) as error:
            failed = left.pop(0)
            failure = explain(error, hints)
            self.line("FAIL", failed, failure.text, failure.hint)
            for name in left:
                self.line("skip", name, f"needs {failed}")

    def summarize(self) -> None:
        """Print how many steps there were of each mark, or the whole document in JSON."""
        ok, failed, skipped = (self.counts[mark] for mark in ("ok", "FAIL", "skip"))
        if self._as_json:
            print(json.dumps({"ok": not failed, "steps": self._steps}, indent=2), file=self._out)
            return
        skips = f", {skipped} skipped" if skipped else ""
        print(f"\n{ok} ok, {failed} failed{skips}.", file=self._out)


def explain(
    error: Broken | LinkFailed | SourceFailed | trio.TooSlowError, hints: Mapping[str, str]
) -> Broken:
    """What a step raised as text, with a hint; `hints` are a source's own, by outcome."""
    match error:
        case Broken():
            return error
        case trio.TooSlowError():
            hint = "the address may be wrong, or a firewall drops what is sent to it"
            return Broken("no answer in time", hint)
        case LinkFailed():
            hint = _LINK_HINTS.get(error.reason, "")
            if error.reason == Loss.REJECTED and error.status in (401, 403):
                hint = f"are {FEED} and RATEBRIDGE_FEED_HEADERS right?"
            elif error.reason == Loss.REJECTED and error.status == 404:
                hint = f"the path in {FEED} is not the feed's"
            return Broken(clipped(error.detail, 120) or error.reason, hint)
        case _:
            hint = {**_SOURCE_HINTS, **hints}.get(error.outcome, "")
            return Broken(clipped(error.text, 120), hint)


_LINK_HINTS: Final[Mapping[str, str]] = {
    Loss.DNS: f"is the host in {FEED} right, and can this machine look names up?",
    Loss.REJECTED: "the feed's host answers, but not with a websocket: is the feed healthy?",
    Loss.REFUSED: f"is the feed running, and is the port in {FEED} its own?",
    Loss.UNREACHABLE: f"is there a way from this machine to the host in {FEED}?",
    Loss.PROXY: "are the proxy, its user and password right, or does the feed belong in NO_PROXY?",
    Loss.CERTIFICATE: "an unknown issuer is trusted by SSL_CERT_FILE=FILE.pem (since 3.13 Python "
    f"wants it to have a key usage and a key identifier, RFC 5280); for another name, {FEED} may "
    "name the wrong host; to try things out, set VERIFY_SSL=false",
    Loss.CLIENT_CERTIFICATE: "give one that the feed trusts by RATEBRIDGE_FEED_CERT_FILE",
    Loss.TLS: f"is TLS spoken on that port? If not, {FEED} begins with ws://",
    Loss.OPEN_TIMEOUT: "the peer takes connections but does not answer: is it a healthy feed?",
    Loss.RESET: f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
    Loss.PROTOCOL_ERROR: f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
}

_SOURCE_HINTS: Final[Mapping[str, str]] = {
    FetchOutcome.UNREACHABLE: "is there a way from this machine to the source, or to its proxy?",
    FetchOutcome.REDIRECT: "is the source's URL right, with https:// and the version in its path?",
    FetchOutcome.HTTP_4XX: "is the source's URL right, with the version in its path?",
    FetchOutcome.BAD_BODY: "is the source's URL right? A proxy's or a login page may have answered",
}


_SILENCE_HINT: Final = "without one in RATEBRIDGE_HEARTBEAT_TIMEOUT the service reconnects"


def took(began: float) -> str:
    """The time since `began`, an instant of trio's clock, for people."""
    seconds = trio.current_time() - began
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


async def check_feed(report: Report, settings: Settings, tls: ssl.SSLContext) -> None:
    """The steps from the feed's name to its heartbeats. `tls` is that of the sources."""
    dial = feed_dial(settings, tls)
    address, proxy = dial.address, dial.proxy
    async with trio.open_nursery() as link_nursery:
        with report.steps("dns", "tcp", "tls", "upgrade", "heartbeat") as done:
            with trio.fail_after(OPEN_WITHIN):
                try:
                    host = (proxy or address).host
                    found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                except (OSError, UnicodeError) as error:
                    raise tcp_failure(error) from None
                done(", ".join(sorted({str(entry[4][0]) for entry in found})))
            with trio.fail_after(OPEN_WITHIN):
                began = trio.current_time()
                stream = await dial.open_tcp()
                through = f" through the proxy {clipped(proxy.host, 80)}" if proxy else ""
                done(f"connected to port {address.port}{through} in {took(began)}")
            if not address.secure:
                done("ws:// has no TLS", "skip")
            else:
                with trio.fail_after(OPEN_WITHIN):
                    stream = secured = await add_tls(stream, address, dial.tls)
                if settings.verify_ssl:
                    done(describe_certificate(secured.certificate(), datetime.now(UTC)))
                else:
                    done("the certificate is not checked, as VERIFY_SSL is off")
            await check_link(done, settings, address, stream, link_nursery)
        link_nursery.cancel_scope.cancel()


async def check_link(
    done: Done, settings: Settings, address: Address, stream: trio.abc.Stream, nursery: trio.Nursery
) -> None:
    """The steps on a stream: the upgrade, and enough heartbeats while sending some.

    Calls `done` after each. Raises `LinkFailed`, and `Broken` if no heartbeat comes within
    `LISTEN` timeouts, or none for longer than the timeout, as the service would reconnect.
    """

    async def dialled() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return stream

    async def send_heartbeats() -> None:
        while True:
            link.put([HEARTBEAT])
            await trio.sleep(settings.heartbeat_interval)

    began = trio.current_time()
    options = UpgradeOptions(settings.feed_headers, settings.feed_subprotocol)
    link = await open_link(nursery, address, dialled, options)  # it has a limit of its own
    done(f"open after {took(began)}")
    nursery.start_soon(send_heartbeats, name="heartbeat sender")

    timeout = settings.heartbeat_timeout
    opened, others = trio.current_time(), 0
    came: list[float] = []
    with trio.move_on_after(LISTEN * timeout):
        while True:
            for text in await link.receive():
                with suppress(Refused, Unreadable):
                    if isinstance(decode(text), Heartbeat):
                        came.append(trio.current_time())
                        continue
                others += 1
            if len(came) >= ENOUGH:
                break
    # As in a session, the opening counts as a heartbeat.
    silence = max(b - a for a, b in pairwise([opened, *came, trio.current_time()]))
    await link.close(NORMAL_CLOSURE)
    also = f"; also {others} other messages, left unanswered" if others else ""
    if not came:
        raise Broken(f"none came within {LISTEN * timeout:g} s{also}", _SILENCE_HINT)
    told = f"{len(came)} in {came[-1] - opened:.1f} s, the longest wait {silence:.2f} s{also}"
    if silence > timeout:
        raise Broken(told, _SILENCE_HINT)
    done(told)


def describe_certificate(certificate: Any, now: datetime) -> str:
    """Issuer and end of a certificate, for people.

    `certificate` is what `ssl.SSLSocket.getpeercert` gives; the days left count from `now`.
    """
    names = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    issuer = names.get("organizationName") or names.get("commonName") or "somebody without a name"
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    left = f"{end:%Y-%m-%d} ({(end - now).days} days)"
    return f"certificate of {clipped(issuer, 60)}, good until {left}"


async def check_source(report: Report, source: Source, now: datetime, within: float) -> None:
    """The steps of one source; each may take `within` seconds.

    They are those that it declares, such as its key; today's table (UTC, by `now`); and that
    of `PAST` before, as real requests ask for.
    """
    name = source.name
    declared = provider(name)
    first = [declared.check] if declared.check else []
    steps = [*(step for step, _ in first), "today", "past"]
    with report.steps(*(f"{name} {step}" for step in steps), hints=declared.hints) as done:
        for _, run in first:
            with trio.fail_after(within):
                done(await run(source))
        for day in (now.date(), now.date() - PAST):
            with trio.fail_after(within):
                began = trio.current_time()
                sheet = await source.fetch(day, now)
            rows = [sheet.find(code, day) for code in sorted(sheet.currencies)]
            found = [known_on for _, known_on in filter(None, rows)]
            newest = max(found, default=day)
            older = "" if newest == day else f", of {newest}"
            done(f"{len(found)} currencies for {day}{older} in {took(began)}")


async def check(
    settings: Settings, report: Report, dependencies: Dependencies | None = None
) -> bool:
    """Run and report all steps; returns whether none failed.

    Of `dependencies` the sources and the clock are used. Raises `CannotStart` or `BadSettings`
    if TLS cannot be set up by the settings.
    """
    dependencies = dependencies or Dependencies()
    assert settings.feed is not None, "the settings have been judged"
    remarks = [unknown_in_words(name) for name in settings.unknown]
    if not settings.verify_ssl:
        remarks.append("VERIFY_SSL is off, so anybody can pass for the feed or a source")
    # Without URLs, which can hold secrets.
    text = f"feed {settings.feed.authority}, sources {', '.join(settings.providers)}"
    report.line("ok", "settings", text, "; ".join(remarks))
    if settings.audit_file is not None:
        with report.steps("audit file") as done:
            there = settings.audit_file.exists()  # it is not opened, as a service may write to it
            tried = settings.audit_file if there else settings.audit_file.parent
            if not os.access(tried, os.R_OK | os.W_OK):
                hint = "does RATEBRIDGE_AUDIT_FILE belong to the user that the service runs as?"
                raise Broken("cannot be read and written", hint)
            done("can be written")
    tls = tls_context(settings.verify_ssl)
    await check_feed(report, settings, tls)
    for source in dependencies.sources or make_sources(settings, HttpClient(tls, settings.proxies)):
        await check_source(report, source, dependencies.clock(), settings.rate_deadline)
    report.summarize()
    return not report.counts["FAIL"]
