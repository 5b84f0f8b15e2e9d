"""Try scripts/nginx.conf: one call for each answer, and no key left lying about.

    uv run scripts/check_cache.py

Runs nginx on loopback with that very file, only its ports, paths and sources replaced, in front of
stand-ins for the rate sources behind TLS. Skips, and says so, where there is no nginx.
"""

import os
import shutil
import socket
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Final

import trio
import trustme

from ratebridge.fakes.rates import FakeRates, serve_rates

SITE: Final = Path(__file__).resolve().parent / "nginx.conf"
KEY: Final = "the-key-that-nobody-may-write-down"
HOSTS: Final = (
    *("api.freecurrencyapi.com", "api.frankfurter.dev"),
    *("www.ecb.europa.eu", "api.exchange.coinbase.com"),
)
MONTH: Final = "/frankfurter/v2/rates?from=2021-04-26&to=2021-06-05&base=EUR"
CANDLES: Final = "/products/BTC-EUR/candles?granularity=86400"
# What is asked, with which key, and what comes: the status, and whether it came from the cache.
ROWS: Final = (
    ("/freecurrencyapi/v1/historical?date=2021-05-18", "wrong", 401, "MISS"),
    ("/freecurrencyapi/v1/historical?date=2021-05-18", KEY, 200, "MISS"),  # no refusal is held
    ("/freecurrencyapi/v1/historical?date=2021-05-18", KEY, 200, "HIT"),
    ("/freecurrencyapi/v1/status", KEY, 200, "BYPASS"),  # so that `check` tells a wrong key
    ("/freecurrencyapi/v1/latest?apikey=x", KEY, 400, None),  # it would stand in the log
    (MONTH, "", 200, "MISS"),
    (MONTH, "", 200, "HIT"),
    ("/ecb/stats/eurofxref/eurofxref-hist-90d.xml", "", 200, "MISS"),
    ("/ecb/stats/eurofxref/eurofxref-hist-90d.xml", "", 200, "HIT"),
    (f"/coinbase{CANDLES}&start=2021-05-01T00:00:00Z&end=2021-05-31T00:00:00Z", "", 200, "MISS"),
    (f"/coinbase{CANDLES}&start=2021-05-01T00:00:00Z&end=2021-05-31T00:00:00Z", "", 200, "HIT"),
    ("/elsewhere", "", 404, None),
)
MAIN: Final = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log info; {user}
events {{ worker_connections 64; }}
http {{ {upstreams} client_body_temp_path {folder}/t; proxy_temp_path {folder}/t;
        fastcgi_temp_path {folder}/t; uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
        include {folder}/site.conf; }}
"""


def get(port: int, target: str, key: str) -> tuple[int, str | None]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{target}", headers={"apikey": key})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers["X-Cache-Status"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["X-Cache-Status"]


async def check(folder: Path) -> list[str]:
    """The rows that went wrong, in a line each."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*HOSTS).configure_cert(context)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rates = FakeRates(key=KEY)
    async with trio.open_nursery() as nursery:
        source = await nursery.start(partial(serve_rates, rates, tls=context))
        site = SITE.read_text().replace("listen 8080;", f"listen 127.0.0.1:{port};")
        site = site.replace("/etc/ssl/certs/ca-certificates.crt", str(folder / "ca.pem"))
        site = site.replace("/var/cache/nginx-ratebridge", f"{folder}/cache")
        site = site.replace("/var/log/nginx/ratebridge.log", f"{folder}/access.log")
        site = site.replace("rewrite ^/coinbase(/.*)$ $1 break;", "")  # the stand-in's path has it
        write(folder / "site.conf", site)
        upstreams = "".join(f"upstream {host} {{ server 127.0.0.1:{source}; }} " for host in HOSTS)
        user = "user root;" if os.geteuid() == 0 else ""
        main = MAIN.format(folder=folder, upstreams=upstreams, user=user)
        write(folder / "main.conf", main)
        command = ["nginx", "-p", str(folder), "-c", str(folder / "main.conf")]
        process = await trio.lowlevel.open_process(command)
        try:
            await wait_for(port)
            wrong = []
            for target, key, *expected in ROWS:
                got = await trio.to_thread.run_sync(get, port, target, key)
                if list(got) != expected:
                    wrong.append(f"{target}: {got} instead of {expected}")
        finally:
            process.terminate()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 30):
                await process.wait()
        nursery.cancel_scope.cancel()
    return wrong + [f"the key is in {path.name}" for path in files_with_the_key(folder)]


def write(path: Path, text: str) -> None:
    path.write_text(text)


def files_with_the_key(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ]


async def wait_for(port: int) -> None:
    with trio.fail_after(30):
        while True:
            try:
                await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
                return
            except OSError:
                await trio.sleep(0.1)


def main() -> None:
    if not shutil.which("nginx"):
        print("cache check skipped: there is no nginx")
        return
    with tempfile.TemporaryDirectory(prefix="ratebridge-cache-") as folder:
        wrong = trio.run(check, Path(folder))
    sys.exit("\n".join(wrong) if wrong else None)


if __name__ == "__main__":
    main()
