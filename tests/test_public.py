"""The public API, used from outside."""

import os
import subprocess
import sys

import pytest
import trio

import ratebridge
from ratebridge.fakes.feed import StandIn, request_text, serve_feed


def test_every_public_name_exists_and_is_in_the_docstring():
    assert ratebridge.__doc__ is not None
    for name in ratebridge.__all__:
        assert getattr(ratebridge, name) is not None
        assert f"`{name}" in ratebridge.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = ratebridge.nothing


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, ratebridge; print([m for m in ('trio', 'httpx', 'attrs') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert ended.stdout == "[]\n"


def test_the_service_in_a_nursery_of_ones_own():
    feed = StandIn(iter([request_text(1)]), 100)

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def serve_stand_in(task_status: trio.TaskStatus[int]) -> None:
                await serve_feed(feed, [], task_status=task_status)

            port = await nursery.start(serve_stand_in)
            settings = ratebridge.load_settings(
                {
                    "CURRENCY_ASSIGNMENT_WS_URI": f"ws://127.0.0.1:{port}",
                    "RATEBRIDGE_PROVIDERS": "ecb",
                }
            )
            nursery.start_soon(ratebridge.serve, settings)
            with trio.fail_after(10):
                await feed.done.wait()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert (feed.replies, feed.errors) == (1, 0)


async def test_a_service_without_a_feed_does_not_start():
    with pytest.raises(ratebridge.BadSettings, match="CURRENCY_ASSIGNMENT_WS_URI"):
        await ratebridge.serve(ratebridge.Settings())


def test_the_fakes_are_imported_when_they_are_first_used(monkeypatch):
    monkeypatch.delattr(ratebridge, "fakes", raising=False)
    assert ratebridge.fakes.__name__ == "ratebridge.fakes"
