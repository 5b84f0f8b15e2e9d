"""The command `check`: tries the settings against the real feed and the real sources.

Each step prints a line when it is done: a mark, the step, what was found, and after
a failure a hint; or all of them become one JSON document. Each step gets what the one
before it made; after a failure the rest is skipped.

For a few seconds it is another client of the feed. Requests that come to it are
counted and not answered. It takes two calls of each source's quota.
"""

import argparse
import json
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO

import attrs
import trio

from ..app import Dependencies, feed_dial, make_sources
from ..errors import FetchOutcome, LinkFailed, Loss, Refused, SourceFailed, Unreadable
from ..link.address import Address
from ..link.dial import NetworkDial, add_tls
from ..link.link import OPEN_WITHIN, Link, open_link
from ..link.tls import tls_context
from ..link.upgrade import UpgradeOptions
from ..messages import HEARTBEAT, Heartbeat, clipped, decode
from ..operating.logs import configure_logs, with_colors
from ..providers.http import HttpClient
from ..providers.registry import NAMES, provider
from ..providers.source import Provider, Source
from ..proxies import Proxy
from ..session import HeartbeatSettings
from ..settings import FEED, Settings, load_settings, unknown_in_words
from ..signals import run_unless_stopped
from .options import add_command

LISTEN: Final = 1.75  # heartbeat timeouts: 3.5 s by default
ENOUGH: Final = 3  # heartbeats: two gaps between them
PAST: Final = timedelta(days=28)  # the age of the second table, as in real traffic
ENDS_SOON: Final = 14  # days before its end from which a certificate is remarked on
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
        description="Tries the settings against the real feed and sources, and reports what works."
        "\nFor a few seconds it is another client of the feed, which answers no request. It uses\n"
        "two calls of each source's quota.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object with all steps")


def run(options: argparse.Namespace) -> int:
    """Run the command; 1 if a step failed, else 0."""
    settings = load_settings(env_file=getattr(options, "env_file", None))
    configure_logs("error", "auto")
    report = Report(sys.stdout, as_json=options.json)
    return 0 if run_unless_stopped(partial(check, settings, report)) else 1


@attrs.frozen
class Found:
    """What a step found, as text, and what it made for the next step."""

    text: str
    made: Any = None
    mark: str = "ok"


Step = tuple[str, float, Callable[[Any], Awaitable[Found]]]  # name, seconds at most, what it does


@attrs.frozen(eq=False)
class Broken(Exception):
    """A failed step, as text for people."""

    text: str
    hint: str = ""


class Report:
    """Prints each step as it is done, and counts them; in JSON, prints all at the end."""

    COLOURS: ClassVar = {"ok": "32", "FAIL": "31", "skip": "33"}

    def __init__(self, out: TextIO, *, as_json: bool = False) -> None:
        self._out = out
        self._as_json = as_json
        self._coloured = with_colors(out)
        self._steps: list[dict[str, str]] = []
        self.counts = dict.fromkeys(self.COLOURS, 0)

    def line(self, mark: str, name: str, text: str, hint: str = "") -> None:
        self.counts[mark] += 1
        self._steps.append({"step": name, "result": mark.lower(), "text": text, "hint": hint})
        if self._as_json:
            return
        shown = f"{mark:<4}"
        if self._coloured:
            shown = f"\x1b[{self.COLOURS[mark]}m{shown}\x1b[0m"
        print(f"{shown}  {name:<21}  {text}", file=self._out, flush=True)
        if hint:
            print(f"{'':27}  hint: {hint}", file=self._out, flush=True)

    async def run(
        self, steps: Sequence[Step], made: Any = None, hints: Mapping[str, str] | None = None
    ) -> Any:
        """Run steps, each with what the one before made; returns what the last good one made.

        The first gets `made`. `hints` are a source's own, by outcome.
        """
        failed = None
        for name, within, step in steps:
            if failed is not None:
                self.line("skip", name, f"needs {failed}")
                continue
            try:
                with trio.fail_after(within):
                    found = await step(made)
            except (Broken, LinkFailed, SourceFailed, trio.TooSlowError) as error:
                failure = explain(error, within, hints or {})
                self.line("FAIL", name, failure.text, failure.hint)
                failed = name
            else:
                self.line(found.mark, name, found.text)
                made = found.made
        return made

    def summarize(self) -> None:
        ok, failed, skipped = self.counts.values()
        if self._as_json:
            print(json.dumps({"ok": not failed, "steps": self._steps}, indent=2), file=self._out)
            return
        skips = f", {skipped} skipped" if skipped else ""
        print(f"\n{ok} ok, {failed} failed{skips}.", file=self._out)


def explain(error: Exception, within: float, hints: Mapping[str, str]) -> Broken:
    """A failure as text, with a hint."""
    match error:
        case Broken():
            return error
        case LinkFailed(reason=Loss.REJECTED, status=status):
            return Broken(error.detail, _rejected_hint(status or 0))
        case LinkFailed():
            text = clipped(error.detail, 120) or error.reason
            strict = any(words in error.detail for words in _STRICT)
            return Broken(text, _STRICT_HINT if strict else _LINK_HINTS.get(error.reason, ""))
        case SourceFailed():
            hint = {**_SOURCE_HINTS, **hints}.get(error.outcome, "")
            return Broken(clipped(error.text, 120), hint)
        case _:
            return Broken(
                f"no answer within {within:g} s",
                "the address may be wrong, or a firewall drops what is sent to it",
            )


_LINK_HINTS: Final[Mapping[str, str]] = {
    Loss.REFUSED: f"is the feed running, and is the port in {FEED} its own?",
    Loss.UNREACHABLE: f"is there a way from this machine to the host in {FEED}?",
    Loss.PROXY: "is the proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY right, or does the feed "
    "belong in NO_PROXY?",
    Loss.CERTIFICATE: "trust its issuer by SSL_CERT_FILE=FILE.pem, or, to try things out, set "
    "VERIFY_SSL=false",
    Loss.CLIENT_CERTIFICATE: "give one that the feed trusts by RATEBRIDGE_FEED_CERT_FILE",
    Loss.TLS: f"is TLS spoken on that port? If not, {FEED} begins with ws://",
    Loss.OPEN_TIMEOUT: "the peer accepts connections but does not answer: is it the feed, and is "
    "it healthy?",
    Loss.RESET: f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
    Loss.PROTOCOL_ERROR: f"is it the feed's port? One that speaks TLS needs wss:// in {FEED}",
}

# What Python checks since 3.13 (ssl.VERIFY_X509_STRICT), in OpenSSL's words.
_STRICT: Final = ("Key Identifier", "key usage", "Basic Constraints")
_STRICT_HINT: Final = (
    "Python checks more since 3.13: the authority has to be made anew with a key usage and a key "
    "identifier (RFC 5280), or an older Python be used"
)

_SOURCE_HINTS: Final[Mapping[str, str]] = {
    FetchOutcome.UNREACHABLE: "is there a way from this machine to the source? Its URL can be "
    "set, see the README",
    FetchOutcome.REDIRECT: "is the source's URL right, with https:// and the version in its path?",
    FetchOutcome.HTTP_4XX: "is the source's URL right, with the version in its path?",
    FetchOutcome.BAD_BODY: "is the source's URL right? A proxy's or a login page may have answered",
}


_SILENCE_HINT: Final = (
    "the feed should send one each second; without one the service reconnects after "
    "RATEBRIDGE_HEARTBEAT_TIMEOUT"
)


_AUDIT_HINT: Final = "does RATEBRIDGE_AUDIT_FILE belong to the user that the service runs as?"


def _rejected_hint(status: int) -> str:
    if status == 404:
        return f"the path in {FEED} is not the feed's"
    if status in (401, 403):
        return f"the feed does not let this client in: is all of {FEED} right?"
    return "the feed's host answers, but not with a websocket: is the feed healthy?"


def took(began: float) -> str:
    seconds = trio.current_time() - began
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


async def check_feed(report: Report, settings: Settings, tls: ssl.SSLContext) -> None:
    """The steps from the feed's name to its heartbeats; then close an open connection."""
    address = settings.feed
    assert address is not None, "the settings have been judged"
    dial = feed_dial(settings, address, tls)
    options = UpgradeOptions(settings.feed_headers, settings.feed_subprotocol)
    heartbeat = HeartbeatSettings(settings.heartbeat_interval, settings.heartbeat_timeout)
    async with trio.open_nursery() as link_nursery:
        opening = partial(upgrade, address, options, heartbeat.interval, link_nursery)
        made = await report.run(
            [
                ("dns", OPEN_WITHIN, partial(look_up, dial.proxy or address)),
                ("tcp", OPEN_WITHIN, partial(connect, dial)),
                ("tls", OPEN_WITHIN, partial(secure, dial)),
                # These have limits of their own.
                ("upgrade", inf, opening),
                ("heartbeat", inf, partial(hear_heartbeats, heartbeat)),
            ]
        )
        if isinstance(made, Link):
            await made.close(NORMAL_CLOSURE)
        link_nursery.cancel_scope.cancel()


async def look_up(address: Address | Proxy, _made: None) -> Found:
    try:
        found = await trio.socket.getaddrinfo(
            address.host, address.port, type=trio.socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        raise Broken(
            f"the host {clipped(address.host, 80)} was not found",
            f"is the host in {FEED} right, and can this machine look names up?",
        ) from None
    return Found(", ".join(sorted({str(entry[4][0]) for entry in found})))


async def connect(dial: NetworkDial, _made: None) -> Found:
    began = trio.current_time()
    stream = await dial.open_tcp()
    through = f" through the proxy {clipped(dial.proxy.host, 80)}" if dial.proxy else ""
    return Found(f"connected to port {dial.address.port}{through} in {took(began)}", stream)


async def secure(dial: NetworkDial, stream: trio.abc.Stream) -> Found:
    if dial.tls is None:
        return Found("ws:// has no TLS", stream, "skip")
    secured = await add_tls(stream, dial.address, dial.tls)
    if dial.tls.verify_mode == ssl.CERT_NONE:
        return Found("the certificate is not checked, as VERIFY_SSL is off", secured)
    return Found(describe_certificate(secured.certificate(), datetime.now(UTC)), secured)


async def upgrade(
    address: Address,
    options: UpgradeOptions,
    interval: float,
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
) -> Found:
    """Open the connection, and send heartbeats on it from now on."""

    async def dialled() -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return stream

    began = trio.current_time()

    async def send_heartbeats() -> None:
        while True:
            link.put([HEARTBEAT])
            await trio.sleep(interval)

    link = await open_link(nursery, address, dialled, options)
    nursery.start_soon(send_heartbeats, name="heartbeat sender")
    return Found(f"open after {took(began)}", link)


async def hear_heartbeats(heartbeat: HeartbeatSettings, link: Link) -> Found:
    """Listen for heartbeats until there are enough, or until the timeout."""
    within = LISTEN * heartbeat.timeout
    opened = trio.current_time()
    came: list[float] = []
    others = 0
    with trio.move_on_after(within):
        while len(came) < ENOUGH:
            frames = await link.receive()
            beats = sum(map(is_heartbeat, frames))
            others += len(frames) - beats
            came.extend([trio.current_time()] * beats)
    also = f"; also {others} other messages, left unanswered" if others else ""
    if not came:
        raise Broken(f"none came within {within:g} s{also}", _SILENCE_HINT)
    text = f"{len(came)} in {came[-1] - opened:.1f} s"
    gaps = [after - before for before, after in pairwise(came)]
    if gaps:
        text += f", gaps from {min(gaps):.2f} to {max(gaps):.2f} s"
    # As in a session, the opening counts as a heartbeat.
    silence = max(b - a for a, b in pairwise([opened, *came, trio.current_time()]))
    if silence > heartbeat.timeout:
        raise Broken(f"{text}, and once none for {silence:.1f} s{also}", _SILENCE_HINT)
    return Found(text + also, link)


def is_heartbeat(frame: bytes) -> bool:
    try:
        return isinstance(decode(frame), Heartbeat)
    except (Refused, Unreadable):
        return False


def describe_certificate(certificate: Any, now: datetime) -> str:
    """Issuer and end of a certificate given by `ssl.SSLSocket.getpeercert`."""
    names = dict(pair for part in certificate.get("issuer", ()) for pair in part)
    issuer = names.get("organizationName") or names.get("commonName") or "somebody without a name"
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    days = (end - now).days
    soon = ", which is soon" if days < ENDS_SOON else ""
    return f"certificate of {clipped(issuer, 60)}, good until {end:%Y-%m-%d} ({days} days{soon})"


async def check_source(report: Report, source: Source, now: datetime, within: float) -> None:
    """The steps of one source; each may take `within` seconds."""
    name = source.name
    declared = provider(name) if name in NAMES else Provider(name, lambda *_: source)
    steps: list[Step] = [
        (f"{name} today", within, partial(fetch_table, source, now.date(), now)),
        (f"{name} past", within, partial(fetch_table, source, now.date() - PAST, now)),
    ]
    if declared.check is not None:
        step, run = declared.check
        steps.insert(0, (f"{name} {step}", within, partial(say, run, source)))
    await report.run(steps, hints=declared.hints)


async def say(run: Callable[[Source], Awaitable[str]], source: Source, _made: None) -> Found:
    return Found(await run(source))


async def fetch_table(source: Source, day: date, now: datetime, _made: None) -> Found:
    began = trio.current_time()
    sheet = await source.fetch(day, now)
    found = [row for code in sorted(sheet.currencies) if (row := sheet.find(code, day)) is not None]
    newest = max((known_on for _, known_on in found), default=day)
    older = "" if newest == day else f", of {newest}"
    return Found(f"{len(found)} currencies for {day}{older} in {took(began)}")


def describe_settings(settings: Settings) -> tuple[str, str]:
    """The main settings, and remarks. Without URLs, which can hold secrets."""
    assert settings.feed is not None, "the settings have been judged"
    sources = ", ".join(settings.providers)
    remarks = [unknown_in_words(name) for name in settings.unknown]
    if not settings.verify_ssl:
        remarks.append("VERIFY_SSL is off, so anybody can pass for the feed or a source")
    return f"feed {settings.feed.authority}, sources {sources}", "; ".join(remarks)


async def check(
    settings: Settings, report: Report, dependencies: Dependencies | None = None
) -> bool:
    """Run and report all steps; returns whether none failed."""
    dependencies = dependencies or Dependencies()
    assert settings.feed is not None, "the settings have been judged"
    text, remarks = describe_settings(settings)
    report.line("ok", "settings", text, remarks)
    if settings.audit_file is not None:
        if can_append(settings.audit_file):
            report.line("ok", "audit file", "can be written")
        else:
            report.line("FAIL", "audit file", "cannot be read and written", _AUDIT_HINT)
    tls = tls_context(settings.verify_ssl)
    await check_feed(report, settings, tls)
    http = HttpClient(tls, settings.proxies)
    sources = dependencies.sources or make_sources(settings, http)
    for source in sources:
        # The service gives a source the same share of the deadline.
        within = settings.rate_deadline / len(sources)
        await check_source(report, source, dependencies.clock(), within)
    report.summarize()
    return not report.counts["FAIL"]


def can_append(path: Path) -> bool:
    """Whether a file can be read and written, or created; it is not opened."""
    if os.access(path, os.F_OK):
        return os.access(path, os.R_OK | os.W_OK)
    return os.access(path.parent, os.W_OK | os.X_OK)
