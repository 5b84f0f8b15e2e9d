"""The commands that need no feed: `demo` on a terminal, and `mock-server` with recorded traffic."""

import json
import subprocess
import sys

import trio

import ratebridge
from ratebridge.commands.demo import line
from ratebridge.fakes.feed import request_text

HEARTBEAT = '{"type":"heartbeat"}'


def test_a_request_and_its_reply_are_a_line():
    request = request_text(1, "1.50", "ZWL")
    error = '{"type":"error","id":1,"message":"Unable to convert stake."}'
    assert line(request, error) == "2021-05-18          1.50 ZWL  Unable to convert stake."
    reply = request_text(1, "1.2", "EUR")
    assert line(request, reply) == "2021-05-18          1.50 ZWL             1.2 EUR"


def test_recorded_traffic_is_replayed_and_its_end_told(tmp_path):
    recorded = tmp_path / "recorded.jsonl"
    lines = [HEARTBEAT, request_text(1, "1.5", "EUR"), "", request_text(1, "1.5", "ZWL")]
    recorded.write_text("\n".join(lines))
    command = [sys.executable, "-m", "ratebridge", "mock-server", "--port", "0", "--rate", "100"]
    with subprocess.Popen(
        [*command, "--replay", str(recorded)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        log = server.stdout
        listening = json.loads(log.readline())
        settings = ratebridge.load_settings(
            {"CURRENCY_ASSIGNMENT_WS_URI": listening["uri"], "RATEBRIDGE_PROVIDERS": "ecb"}
        )

        async def answer() -> list[str]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ratebridge.serve, settings)
                told = await trio.to_thread.run_sync(lambda: [log.readline() for _ in range(3)])
                nursery.cancel_scope.cancel()
            return told

        *replies, done = map(json.loads, trio.run(answer))
        server.terminate()
        stopped = json.loads(log.readlines()[-1])
    assert {shown["request"] for shown in replies} == {lines[1], lines[3]}
    [converted] = [shown["reply"] for shown in replies if '"error"' not in shown["reply"]]
    assert '"odds":2.2,"stake":1.5,"currency":"EUR"' in converted
    told = [done[name] for name in ("event", "requests", "replies", "errors")]
    assert told == ["feed.done", 2, 2, 1]
    assert stopped["event"] == "feed.stopped"
    assert server.returncode == 0
