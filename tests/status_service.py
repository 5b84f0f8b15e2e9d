"""A service for the status page's tests: real parts, fake sources."""

from datetime import UTC, date, datetime
from decimal import Decimal

import attrs
import trio
from ratebridge.operating.journal import Journal

from ratebridge.bridge import Bridge
from ratebridge.errors import SourceFailed
from ratebridge.link.address import Address
from ratebridge.operating.overview import Service
from ratebridge.operating.stats import Stats
from ratebridge.outbox import Outbox
from ratebridge.providers.chain import RateChain
from ratebridge.providers.source import Quota
from ratebridge.rates import Quote, RateTable, Tables
from ratebridge.settings import Settings

NOW = datetime(2021, 6, 1, 12, tzinfo=UTC)
FEED = Address("feed.example", 443, "/secret-path", secure=True)


@attrs.define
class Shop:
    """A source without tables: the tests put them into the cache."""

    name: str = "shop"
    quota: Quota | None = None
    budget: None = None

    async def fetch(self, day: date, now: datetime) -> RateTable:
        await trio.lowlevel.checkpoint()
        raise SourceFailed("no-table", "has none")


def table(day: date, provider: str = "shop") -> RateTable:
    one = Quote(Decimal(1), day)
    return RateTable(provider, day, {"EUR": one, "USD": one}, NOW)


def make_service(
    nursery: trio.Nursery, *sources: Shop, stats: Stats | None = None, feed: Address | None = FEED
) -> tuple[Service, Journal]:
    journal = Journal(stats or Stats(), lambda: NOW)
    tables = Tables(7200.0)
    chain = RateChain(
        sources or (Shop(),),
        tables,
        nursery,
        deadline=5.0,
        utc_now=lambda: NOW,
        observer=journal,
    )
    outbox = Outbox(journal)
    bridge = Bridge(chain, nursery, outbox.add, utc_now=lambda: NOW, observer=journal)
    settings = Settings(feed)
    return Service(
        settings, journal.stats, bridge, outbox, chain, trio.current_time(), lambda: NOW
    ), journal
