"""Fakes of the feed and of the rate sources, for tests, the demo and `mock-server`.

They assert nothing: they record what they receive. A whole test of the service, without a network:

    import ratebridge
    import trio
    from ratebridge.fakes.feed import StandIn, request_text, serve_feed

    async def test():
        feed = StandIn(iter([request_text(1, stake="100", currency="USD")]), rate=100)
        peers = []
        async with trio.open_nursery() as nursery:
            port = await nursery.start(serve_feed, feed, peers)
            settings = ratebridge.load_settings({
                "CURRENCY_ASSIGNMENT_WS_URI": f"ws://127.0.0.1:{port}",
                "RATEBRIDGE_PROVIDERS": "ecb",
            })
            nursery.start_soon(ratebridge.serve, settings)
            with trio.fail_after(10):
                await feed.done.wait()
            nursery.cancel_scope.cancel()
        replies = [got.message for got in peers[0].received if "payload" in got.message]
        assert [reply["payload"]["stake"] for reply in replies] == ["81.81967"]

    trio.run(test)

A script in place of the `StandIn` can do anything that a server can. `MemoryFeed` plays it in
memory, for a virtual clock: its `dial` is one of the `Dependencies`. `rates.FakeRates` plays the
rate sources, with faults on demand.
"""
