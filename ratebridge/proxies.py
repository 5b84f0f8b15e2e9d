"""Which proxy a connection takes, for feed and sources alike. Pure.

The environment says it, as it does to curl: `HTTP_PROXY` for http and ws, `HTTPS_PROXY`
for https and wss, `ALL_PROXY` for both, `NO_PROXY` for the hosts that need none. Each is
known in lower case too, which comes first.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs

from .errors import BadSettings

PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}  # curl's and Go's


@attrs.frozen
class Proxy:
    """A proxy. `scheme` is one of `PORTS`; `password` is percent-decoded, as `user` is."""

    scheme: str
    host: str
    port: int
    user: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> "Proxy":
        """A proxy from its URL; one without a scheme is spoken to by http.

        Raises ValueError with what was expected. Nothing is quoted: it may hold a password.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            host, port = parts.hostname, parts.port
            good = parts.scheme in PORTS and host and host.isascii() and url.isprintable()
        except ValueError:
            good = False
        if not good or port == 0:
            raise ValueError("a proxy's URL with http://, https://, socks5:// or socks5h://")
        assert host is not None, "it was looked at above"
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.scheme, host, port or PORTS[parts.scheme], user, password)


@attrs.frozen
class Exempt:
    """An entry of `NO_PROXY`: a domain or a network of addresses, and a port if it has one."""

    host: str | IPv4Network | IPv6Network
    port: int | None = None

    @classmethod
    def parse(cls, entry: str) -> "Exempt":
        """`.domain`, `*.domain`, `domain`, `address`, `address/prefix`; `:port` behind them.

        An IPv6 address with a port stands in brackets. Raises ValueError for anything else.
        """
        try:
            return cls(ip_network(entry, strict=False))
        except ValueError:
            parts = urlsplit(f"//{entry}")
            name = (parts.hostname or "").removeprefix("*").strip(".")
            if parts.netloc != entry or not name or set(entry[1:]) & set("*@%"):
                raise ValueError("a host, a domain or a network") from None
            try:
                return cls(ip_network(name), parts.port)
            except ValueError:
                return cls(name, parts.port)

    def covers(self, host: str, port: int) -> bool:
        """Whether a host is this one or in it."""
        if self.port not in (None, port):
            return False
        if isinstance(self.host, str):
            return f".{host.lower().rstrip('.')}".endswith(f".{self.host}")
        try:
            return ip_address(host) in self.host
        except ValueError:
            return False


@attrs.frozen
class Proxies:
    """The proxies for http and for https, and the hosts that need none.

    `ignored` are the entries of `NO_PROXY` that mean nothing; they are to be warned of.
    """

    by_scheme: Mapping[str, Proxy] = attrs.Factory(dict)
    exempt: tuple[Exempt, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Proxies":
        """The proxies that the environment names. Raises `BadSettings` for one that is none."""

        def value(name: str) -> str:
            return (environ.get(name.lower()) or environ.get(name) or "").strip()

        by_scheme: dict[str, Proxy] = {}
        problems = []
        for name, schemes in (
            ("ALL_PROXY", ("http", "https")),
            ("HTTP_PROXY", ("http",)),
            ("HTTPS_PROXY", ("https",)),
        ):
            try:
                if url := value(name):
                    by_scheme |= dict.fromkeys(schemes, Proxy.parse(url))
            except ValueError as expected:
                problems.append(f"{name}: expected {expected}")
        if problems:
            raise BadSettings(*problems)
        exempt, ignored = [], []
        for entry in value("NO_PROXY").replace(",", " ").split() if by_scheme else ():
            if entry == "*":
                return cls()
            try:
                exempt.append(Exempt.parse(entry.lower()))
            except ValueError:
                ignored.append(entry)
        return cls(by_scheme, tuple(exempt), tuple(ignored))

    def find(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy on the way to a host, by the scheme http, https, ws or wss; None if none is."""
        if any(entry.covers(host, port) for entry in self.exempt):
            return None
        return self.by_scheme.get({"ws": "http", "wss": "https"}.get(scheme, scheme))
