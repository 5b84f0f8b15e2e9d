"""The real process: its commands, exit codes, signals and output."""

import fcntl
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from support import beat, environment

from ratebridge.fakes.feed import FeedPeer, StandIn, request_text, serve_feed

COMMAND = [sys.executable, "-m", "ratebridge"]
RECORDED = [
    request_text(8302, "2753.93103", "ZWL", "2022-01-15T04:22:21.775Z"),
    request_text(8303, "1444.17742", "EUR", "2022-01-13T03:33:19.555Z"),
    request_text("8304", "217.75168", "PLN", "2022-01-15T04:34:18.473Z"),
    request_text(8305, "5220.60172", "GBP", "2022-01-15T05:07:58.499Z"),
]


def run_command(*arguments: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
    )


@attrs.define
class Ended:
    """A service process that has ended."""

    code: int
    log: str
    peers: list[FeedPeer]

    @property
    def events(self) -> list[Any]:
        return [json.loads(line) for line in self.log.splitlines()]

    def event(self, name: str) -> Any:
        [*_, last] = [event for event in self.events if event["event"] == name]
        return last


def run_service(
    script: Callable[[FeedPeer], Any],
    until: Callable[[str], bool],
    cwd: Path,
    *,
    tls: ssl.SSLContext | None = None,
    stop_by: int = signal.SIGTERM,
    stop_again: Callable[[str], bool] | None = None,
    stderr: int | None = None,
    command: list[str] = COMMAND,
    **settings: str,
) -> Ended:
    """Run the service against a feed on a port, and stop it by a signal when `until` holds.

    A second signal follows when `stop_again` holds. Both are given the log so far,
    which is empty where `stderr` takes it. The peers are told at the end.
    """
    log_file = cwd / "log.jsonl"

    async def main() -> Ended:
        peers: list[FeedPeer] = []
        async with trio.open_nursery() as nursery:
            port = await nursery.start(partial(serve_feed, script, peers, tls=tls))
            scheme = "ws" if tls is None else "wss"
            env = environment(
                CURRENCY_ASSIGNMENT_WS_URI=f"{scheme}://localhost:{port}/stream",
                **{"RATEBRIDGE_PROVIDERS": "ecb", **settings},
            )
            with log_file.open("w") as log:
                process = subprocess.Popen(
                    command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=stderr or log
                )
            try:
                for holds in filter(None, (until, stop_again)):
                    with trio.fail_after(20):
                        await trio.lowlevel.checkpoint()
                        while not holds(log_file.read_text()):
                            await trio.sleep(0.02)
                    process.send_signal(stop_by)
                out, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=10))
            finally:
                process.kill()
            nursery.cancel_scope.cancel()
        assert out == b""
        return Ended(process.returncode, log_file.read_text(), peers)

    return trio.run(main)


def test_bad_settings_are_reported_together_with_exit_code_2_and_no_traceback(tmp_path):
    (tmp_path / ".env").write_text("export VERIFY_SSL=perhaps  # a comment\n")
    ended = run_command(cwd=tmp_path, RATEBRIDGE_CACHE_TTL="-1", FREECURRENCY_API_KEY="s3cr et")
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "CURRENCY_ASSIGNMENT_WS_URI",
        "VERIFY_SSL",
        "FREECURRENCY_API_KEY",
        "RATEBRIDGE_CACHE_TTL",
    ]
    assert "s3cr" not in ended.stderr


@pytest.mark.parametrize("stop_by", [signal.SIGTERM, signal.SIGINT])
def test_recorded_requests_are_all_answered_and_a_signal_stops_with_exit_code_0(tmp_path, stop_by):
    replies: dict[str, Any] = {}

    def keep(request: str, reply: str) -> None:
        replies[json.loads(request, parse_int=str)["id"]] = json.loads(reply, parse_float=str)

    feed = StandIn(iter(RECORDED), 100, keep)
    ended = run_service(
        feed, lambda _: feed.done.is_set() and feed.heartbeats > 0, tmp_path, stop_by=stop_by
    )
    assert ended.code == 0
    assert "'ZWL'" in replies.pop("8302")["message"]
    assert {key: reply["payload"]["stake"] for key, reply in replies.items()} == {
        "8303": "1444.17742",
        "8304": "47.94814",
        "8305": "6251.61867",
    }
    assert [event["event"] for event in ended.events][:2] == ["service.started", "connection.up"]
    assert ended.events[-1]["event"] == "service.stopped"
    assert ended.event("connection.down")["reason"] == "stopped"
    assert (ended.peers[0].path, ended.peers[0].close_code) == ("/stream", 1001)


@pytest.mark.parametrize("verify", ["true", "false"])
def test_a_self_signed_feed_is_refused_unless_verify_ssl_is_off(tmp_path, verify):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(tls)
    feed = StandIn(iter(RECORDED), 100)
    ended = run_service(
        feed,
        lambda log: feed.done.is_set() or "connection.failed" in log,
        tmp_path,
        tls=tls,
        VERIFY_SSL=verify,
    )
    assert ended.code == 0
    if verify == "true":
        assert feed.connections == 0
        failed = ended.event("connection.failed")
        assert failed["reason"] == "certificate"
        assert "certificate" in failed["detail"]
    else:
        assert feed.replies == 4
        assert ended.event("tls.unverified")["level"] == "warning"


def test_the_demo_shows_conversions_and_ends_by_itself(tmp_path):
    no_proxy_is_asked = {"HTTP_PROXY": "http://127.0.0.1:1"}
    ended = run_command("demo", "--count", "20", "--rate", "100", cwd=tmp_path, **no_proxy_is_asked)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("EUR") >= 4
    assert "20 requests" in ended.stdout
    assert ended.stderr == ""


def test_a_reader_who_leaves_the_demo_ends_it_without_a_traceback(tmp_path):
    demo = [*COMMAND, "demo", "--forever", "--rate", "200"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        demo, cwd=tmp_path, env=environment(), stdout=pipe, stderr=pipe
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 0


def test_a_second_signal_ends_a_stop_that_still_waits(tmp_path):
    """After the first signal the request in flight waits for a source without an answer."""

    async def script(peer: FeedPeer) -> None:
        await peer.accept()
        await peer.send(RECORDED[3])
        await beat(peer)

    with socket.create_server(("127.0.0.1", 0)) as source:
        ended = run_service(
            script,
            lambda _: source in select.select([source], [], [], 0)[0],
            tmp_path,
            stop_again=lambda log: "service.stopping" in log,
            RATEBRIDGE_PROVIDERS="frankfurter",
            FRANKFURTER_URL=f"http://127.0.0.1:{source.getsockname()[1]}",
            RATEBRIDGE_RATE_DEADLINE="60",
            RATEBRIDGE_DRAIN_TIMEOUT="60",
        )
    assert ended.code == 0
    assert ended.event("service.stopping")["waiting"] == 1
    assert ended.event("reply.undelivered")["id"] == "8305"
    assert ended.events[-1]["event"] == "service.stopped"


@pytest.mark.parametrize("reader_is", ["gone", "stuck", "not there"])
def test_a_log_without_a_reader_costs_no_answer(tmp_path, reader_is):
    reader, writer = os.pipe()
    if reader_is == "gone":
        os.close(reader)
    elif reader_is == "stuck":
        os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)))
    closing = ["sh", "-c", 'exec "$0" "$@" 2>&-', *COMMAND]
    feed = StandIn(iter(RECORDED), 100)
    try:
        ended = run_service(
            feed,
            lambda _: feed.done.is_set(),
            tmp_path,
            stderr=writer,
            command=closing if reader_is == "not there" else COMMAND,
        )
    finally:
        os.close(writer)
        if reader_is != "gone":
            os.close(reader)
    assert ended.code == 0
    assert feed.replies == 4
    assert ended.peers[0].close_code == 1001


def test_without_standard_streams_a_command_ends_by_its_rules():
    closing = ["sh", "-c", 'exec "$0" "$@" <&- >&-', *COMMAND, "verify", "-"]
    ended = subprocess.run(closing, stderr=subprocess.PIPE, text=True, timeout=20)
    assert ended.returncode == 1, "an empty trail is not true"
    assert "Traceback" not in ended.stderr
