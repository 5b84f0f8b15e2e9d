import pytest
import trio
from rate_bench import make_client

from ratebridge.errors import BadSettings
from ratebridge.fakes.rates import FakeRates
from ratebridge.providers.http import HttpClient
from ratebridge.providers.late_http import LateHttp


class Maker:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> HttpClient:
        self.made += 1
        return make_client(FakeRates())


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def test_the_first_request_makes_the_client_and_all_share_it():
    make = Maker()
    http = LateHttp(make)
    assert make.made == 0
    answers = []

    async def get() -> None:
        answers.append(await http.get("http://rates.test/v2/rates", {"base": "EUR"}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        nursery.start_soon(get)
    await get()
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert make.made == 1
    await http.aclose()


async def test_a_client_that_nobody_needed_is_not_made_to_be_closed():
    make = Maker()
    await LateHttp(make).aclose()
    assert make.made == 0


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
async def test_a_bad_proxy_is_told_at_the_start(monkeypatch, name):
    def make() -> HttpClient:
        raise BadSettings("HTTP_PROXY: expected a proxy")

    LateHttp(make)
    monkeypatch.setenv(name, "nonsense")
    with pytest.raises(BadSettings):
        LateHttp(make)
