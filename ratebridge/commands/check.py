"""The command `check`: tries the settings against the real feed and the real sources.

Each step is a line, printed when it is done: a mark, the step, what was found,
and under a failure a hint. A step that needs one that failed is skipped.

It is a further client of the feed for a few seconds. Requests that come to it
meanwhile are counted and not answered. Of each source's quota it takes two calls.
"""

import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO

import attrs
import trio

from ..app import Dependencies, make_source, run_until_signal, tls_context
from ..errors import LinkFailed, Refused, SourceFailed, Unreadable
from ..link.address import Address
from ..link.dial import add_tls, open_tcp
from ..link.link import OPEN_WITHIN, Link, open_link
from ..messages import HEARTBEAT, Heartbeat, clipped, decode
from ..operating.logs import configure_logs, with_colors
from ..providers.ecb import Ecb
from ..providers.freecurrencyapi import FreeCurrencyApi
from ..providers.http import HttpClient
from ..providers.source import Source
from ..session import HeartbeatSettings
from ..settings import FEED, KEY, Settings

LISTEN: Final = 1.75  # heartbeat timeouts; with the default one this makes 3.5 s
ENOUGH: Final = 3  # heartbeats: two gaps between them
PAST: Final = timedelta(days=28)  # how old the table asked for is: as old as real traffic's bets
ENDS_SOON: Final = 14  # days before its end from which on a certificate is remarked upon
NORMAL_CLOSURE: Final = 1000  # RFC 6455, 7.4.1

Step = Callable[[], Awaitable[str]]


@attrs.frozen(eq=False)
class Broken(Exception):
    """A step that failed, in words for people."""

    text: str
    hint: str = ""


class NotNeeded(Exception):
    """A step that does not apply; the argument says why."""


class Report:
    """The table: prints each step as it is done, and counts."""

    COLOURS: ClassVar = {"ok": "32", "FAIL": "31", "skip": "33"}

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._coloured = with_colors(out)
        self.counts = dict.fromkeys(self.COLOURS, 0)

    def line(self, mark: str, name: str, text: str, hint: str = "") -> None:
        self.counts[mark] += 1
        shown = f"{mark:<4}"
        if self._coloured:
            shown = f"\x1b[{self.COLOURS[mark]}m{shown}\x1b[0m"
        print(f"{shown}  {name:<21}  {text}", file=self._out, flush=True)
        if hint:
            print(f"{'':27}  hint: {hint}", file=self._out, flush=True)

    async def run(self, steps: Sequence[tuple[str, float, Step]]) -> None:
        """Run steps, (name, seconds at most, step), of which each needs those before it."""
        failed = None
        for name, within, step in steps:
            if failed is not None:
                self.line("skip", name, f"needs {failed}")
                continue
            try:
                with trio.fail_after(within):
                    self.line("ok", name, await step())
            except NotNeeded as why:
                self.line("skip", name, str(why))
            except (Broken, LinkFailed, SourceFailed, trio.TooSlowError) as error:
                failure = explain(error, within)
                self.line("FAIL", name, failure.text, failure.hint)
                failed = name

    def summarize(self) -> None:
        ok, failed, skipped = self.counts.values()
        skips = f", {skipped} skipped" if skipped else ""
        print(f"\n{ok} ok, {failed} failed{skips}.", file=self._out)


def explain(error: Exception, within: float) -> Broken:
    """A failure in words, with a hint of what to look at."""
    match error:
        case Broken():
            return error
        case LinkFailed(reason="rejected", status=status):
            return Broken(error.detail, _rejected_hint(status or 0))
        case LinkFailed():
            text = clipped(error.detail, 120) or error.reason
            return Broken(text, _LINK_HINTS.get(error.reason, ""))
        case SourceFailed():
            return Broken(clipped(error.text, 120), _SOURCE_HINTS.get(error.outcome, ""))
        case _:
            return Broken(
                f"no answer within {within:g} s",
                "the address may be wrong, or a firewall drops what is sent to it",
            )


_LINK_HINTS: Final = {
    "refused": f"is the feed running, and is the port in {FEED} its own?",
    "unreachable": f"is there a way from this machine to the host in {FEED}?",
    "certificate": "trust its issuer by SSL_CERT_FILE=FILE.pem, or, to try things out, set "
    "VERIFY_SSL=false",
    "tls": f"is TLS spoken on that port? If not, {FEED} begins with ws://",
    "open-timeout": "the peer takes connections and does not answer: is it the feed, and is it "
    "well?",
    "reset": f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
    "protocol-error": f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
}

_SOURCE_HINTS: Final = {
    "refused-key": f"compare {KEY} with the one in the source's dashboard",
    "quota-month": "wait, take a larger plan, or put another source first in RATEBRIDGE_PROVIDERS",
    "quota-minute": "wait a minute and try again",
    "unreachable": "is there a way from this machine to the source? Its URL can be set, see the "
    "README",
    "redirect": "is the source's URL right, with https:// and the version in its path?",
    "http-404": "is the source's URL right, with the version in its path?",
    "bad-body": "is the source's URL right? A proxy's or a login page may have answered",
}


_SILENCE_HINT: Final = (
    "the feed should send one each second; without one the service connects anew after "
    "RATEBRIDGE_HEARTBEAT_TIMEOUT"
)


_AUDIT_HINT: Final = "does RATEBRIDGE_AUDIT_FILE belong to the user that the service runs as?"


def _rejected_hint(status: int) -> str:
    if status == 404:
        return f"the path in {FEED} is not the feed's"
    if status in (401, 403):
        return f"the feed does not let this client in: is all of {FEED} right?"
    return "the feed's host answers, but not with a websocket: is the feed well?"


def took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class FeedSteps:
    """From the feed's name to its heartbeats; the methods are the steps, in their order.

    The link's tasks live in `nursery`. A stream that `stream` is set to takes
    the place of what the first three steps make.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        address: Address,
        tls: ssl.SSLContext,
        heartbeat: HeartbeatSettings,
    ) -> None:
        self._nursery = nursery
        self._address = address
        self._tls = tls
        self._heartbeat = heartbeat
        self._socket: trio.SocketStream | None = None
        self.stream: trio.abc.Stream | None = None
        self._link: Link | None = None

    async def dns(self) -> str:
        host, port = self._address.host, self._address.port
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise Broken(
                f"the host {clipped(host, 80)} was not found",
                f"is the host in {FEED} right, and can this machine look names up?",
            ) from None
        return ", ".join(sorted({str(entry[4][0]) for entry in found}))

    async def tcp(self) -> str:
        began = trio.current_time()
        self.stream = self._socket = await open_tcp(self._address)
        return f"connected to port {self._address.port} in {took(trio.current_time() - began)}"

    async def tls(self) -> str:
        if not self._address.secure:
            raise NotNeeded("ws:// does without")
        assert self._socket is not None, "made by the step before"
        secured = await add_tls(self._socket, self._address, self._tls)
        self.stream = secured
        if self._tls.verify_mode == ssl.CERT_NONE:
            return "the certificate is not checked, as VERIFY_SSL is off"
        return describe_certificate(secured.getpeercert(), datetime.now(UTC))

    async def upgrade(self) -> str:
        began = trio.current_time()
        self._link = await open_link(self._nursery, self._address, self._dialled)
        return f"open after {took(trio.current_time() - began)}"

    async def _dialled(self) -> trio.abc.Stream:
        assert self.stream is not None, "made by the steps before"
        await trio.lowlevel.checkpoint()
        return self.stream

    async def heartbeat(self) -> str:
        """Beat, and listen until enough heartbeats came or the time for them is over."""
        assert self._link is not None, "made by the step before"
        self._nursery.start_soon(self._beat, self._link, name="heartbeat sender")
        within = LISTEN * self._heartbeat.timeout
        opened = trio.current_time()
        came: list[float] = []
        others = 0
        with trio.move_on_after(within):
            while True:
                for frame in await self._link.receive():
                    if is_heartbeat(frame):
                        came.append(trio.current_time())
                    else:
                        others += 1
                if len(came) >= ENOUGH:
                    break
        also = f"; also {others} other messages, left unanswered" if others else ""
        if not came:
            raise Broken(f"none came within {within:g} s{also}", _SILENCE_HINT)
        text = f"{len(came)} in {came[-1] - opened:.1f} s"
        gaps = [after - before for before, after in pairwise(came)]
        if gaps:
            text += f", gaps from {min(gaps):.2f} to {max(gaps):.2f} s"
        # The opening stands for the first of them, as it does in a session.
        silence = max(b - a for a, b in pairwise([opened, *came, trio.current_time()]))
        if silence > self._heartbeat.timeout:
            raise Broken(f"{text}, and once none for {silence:.1f} s{also}", _SILENCE_HINT)
        return text + also

    async def _beat(self, link: Link) -> None:
        with suppress(LinkFailed):  # who listens is told as well
            while True:
                await link.send([HEARTBEAT])
                await trio.sleep(self._heartbeat.interval)

    async def close(self) -> None:
        """Take leave, politely where there is a link."""
        if self._link is not None:
            await self._link.close(NORMAL_CLOSURE)
        self._nursery.cancel_scope.cancel()


def is_heartbeat(frame: bytes) -> bool:
    try:
        return isinstance(decode(frame), Heartbeat)
    except (Refused, Unreadable):
        return False


def describe_certificate(certificate: Any, now: datetime) -> str:
    """Issuer and end of a certificate, as `ssl.SSLSocket.getpeercert` tells them."""
    names = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    issuer = names.get("organizationName") or names.get("commonName") or "somebody without a name"
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (end - now).days
    soon = ", which is soon" if days < ENDS_SOON else ""
    return f"certificate of {clipped(issuer, 60)}, good until {end:%Y-%m-%d} ({days} days{soon})"


class SourceSteps:
    """What the service will want of one source; the methods are the steps."""

    def __init__(self, source: Source, now: datetime) -> None:
        self._source = source
        self._now = now
        self._today = now.date()

    def steps(self, within: float) -> list[tuple[str, float, Step]]:
        name = self._source.name
        steps: list[tuple[str, float, Step]] = [
            (f"{name} today", within, self.today),
            (f"{name} past", within, self.past),
        ]
        if isinstance(self._source, FreeCurrencyApi):
            steps.insert(0, (f"{name} key", within, self.key))
        return steps

    async def key(self) -> str:
        assert isinstance(self._source, FreeCurrencyApi), "judged by `steps`"
        quota = await self._source.check()
        if quota.month_left is None:
            return "accepted"
        total = "" if quota.month_total is None else f" of {quota.month_total:,}"
        left = f"{quota.month_left:,}{total} calls left this month"
        if quota.month_left <= 0:
            raise Broken(f"accepted, but {left}", _SOURCE_HINTS["quota-month"])
        return f"accepted, {left}"

    async def today(self) -> str:
        if isinstance(self._source, Ecb):
            # Its table is as old as its package: the newest it has is what can work.
            self._today = await self._source.last_day()
            days = (self._now.date() - self._today).days
            return f"{await self._table(self._today)}; the newest it has, {days} days old"
        return await self._table(self._today)

    async def past(self) -> str:
        return await self._table(self._today - PAST)

    async def _table(self, day: date) -> str:
        began = trio.current_time()
        table = await self._source.fetch(day, self._now)
        seconds = trio.current_time() - began
        return f"{len(table.quotes)} currencies for {day} in {took(seconds)}"


def describe_settings(settings: Settings) -> tuple[str, str]:
    """What was understood, and what is to be remarked upon. No URL, as one can hold a secret."""
    assert settings.feed is not None, "the settings have been judged"
    sources = ", ".join(settings.providers)
    remarks = [f"{name} is not known, and does nothing" for name in settings.unknown]
    if not settings.verify_ssl:
        remarks.append("VERIFY_SSL is off, so anybody can pass for the feed or a source")
    return f"feed {settings.feed.authority}, sources {sources}", "; ".join(remarks)


async def check(settings: Settings, out: TextIO, dependencies: Dependencies | None = None) -> bool:
    """Try everything and print the table; whether all of it works."""
    dependencies = dependencies or Dependencies()
    assert settings.feed is not None, "the settings have been judged"
    report = Report(out)
    text, remarks = describe_settings(settings)
    report.line("ok", "settings", text, remarks)
    if settings.audit_file is not None:
        if can_append(settings.audit_file):
            report.line("ok", "audit file", "can be written")
        else:
            report.line("FAIL", "audit file", "cannot be read and written", _AUDIT_HINT)
    tls = tls_context(settings.verify_ssl)
    heartbeat = HeartbeatSettings(settings.heartbeat_interval, settings.heartbeat_timeout)
    async with trio.open_nursery() as feed_nursery:
        feed = FeedSteps(feed_nursery, settings.feed, tls, heartbeat)
        await report.run(
            [
                ("dns", OPEN_WITHIN, feed.dns),
                ("tcp", OPEN_WITHIN, feed.tcp),
                ("tls", OPEN_WITHIN, feed.tls),
                ("upgrade", inf, feed.upgrade),  # has a limit of its own, and so has the next
                ("heartbeat", inf, feed.heartbeat),
            ]
        )
        await feed.close()
    http = HttpClient(tls)
    try:
        sources = dependencies.sources or [
            make_source(name, settings, http) for name in settings.providers
        ]
        for source in sources:
            # As much time as the service will give it.
            within = settings.rate_deadline / len(sources)
            await report.run(SourceSteps(source, dependencies.clock()).steps(within))
    finally:
        with trio.CancelScope(shield=True):
            await http.aclose()
    report.summarize()
    return not report.counts["FAIL"]


def can_append(path: Path) -> bool:
    """Whether a file can be read and written, or made. It is not touched: a service may use it."""
    if path.exists():
        return os.access(path, os.R_OK | os.W_OK)
    return os.access(path.parent, os.W_OK | os.X_OK)


def run_check(settings: Settings) -> int:
    """The command; 0 when all works, 1 when something does not."""
    configure_logs("error", "auto")
    passed = True

    async def check_until(stop: trio.Event) -> None:
        nonlocal passed
        async with trio.open_nursery() as check_nursery:

            async def leave() -> None:
                await stop.wait()
                check_nursery.cancel_scope.cancel()

            check_nursery.start_soon(leave, name="stop")
            passed = await check(settings, sys.stdout)
            check_nursery.cancel_scope.cancel()

    trio.run(run_until_signal, check_until)
    return 0 if passed else 1
