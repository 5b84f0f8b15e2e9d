"""Which proxy a connection takes, for feed and sources alike. Pure.

The environment says it, as it does to curl: `HTTP_PROXY` for http and ws, `HTTPS_PROXY`
for https and wss, `ALL_PROXY` for both, `NO_PROXY` for the hosts that need none. Each is
known in lower case too, which comes first.
"""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import attrs

from .errors import BadSettings

PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}  # curl's and Go's


@attrs.frozen
class Proxy:
    """A proxy.

    `scheme` is one of `PORTS`. `host` is a name or an address, without brackets. User and
    password are percent-decoded, empty if there are none, and stand in no repr.
    """

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
            usual = PORTS[parts.scheme]
            port = usual if parts.port is None else parts.port
            if parts.hostname and port and url.isascii() and url.isprintable():
                secrets = unquote(parts.username or ""), unquote(parts.password or "")
                return cls(parts.scheme, parts.hostname, port, *secrets)
        except (KeyError, ValueError):
            pass
        raise ValueError("a proxy's URL with http://, https://, socks5:// or socks5h://")


def parse_exempt(entry: str) -> tuple[Any, int | None]:
    """An entry of `NO_PROXY`: a network of addresses or a domain; and its port, if it has one.

    It is `domain`, `.domain`, `*.domain`, `address` or `address/prefix`, and `:port` behind
    all but the last; an IPv6 address before a port stands in brackets. Raises ValueError
    for anything else.
    """
    try:
        return ip_network(entry, strict=False), None
    except ValueError:
        parts = urlsplit(f"//{entry}")
    name = (parts.hostname or "").removeprefix("*").strip(".")
    if parts.netloc != entry or not name or set(entry[1:]) & set("*@%"):
        raise ValueError("a host, a domain or a network")
    try:
        return ip_network(name), parts.port
    except ValueError:
        return name, parts.port


@attrs.frozen
class Proxies:
    """The proxies for http, for https, and for all else, and the hosts that need none.

    Args:
        by_scheme: by "http", "https" and "all"; one that is not there is none.
        exempt: the entries of `NO_PROXY`, as `parse_exempt` gives them.
        ignored: the entries that mean nothing, of which a user is to be warned.
    """

    by_scheme: Mapping[str, Proxy] = attrs.Factory(dict)
    exempt: tuple[tuple[Any, int | None], ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Proxies":
        """The proxies that the environment names.

        Raises `BadSettings` with a line for each variable that holds no proxy's URL. An entry
        of `NO_PROXY` never raises; if there is no proxy at all, it is not looked at.
        """

        def value(name: str) -> str:
            return (environ.get(name) or environ.get(name.upper()) or "").strip()

        by_scheme: dict[str, Proxy] = {}
        problems, exempt, ignored = [], [], []
        for scheme in ("all", "http", "https"):
            try:
                if url := value(f"{scheme}_proxy"):
                    by_scheme[scheme] = Proxy.parse(url)
            except ValueError as expected:
                problems.append(f"{scheme.upper()}_PROXY: expected {expected}")
        if problems:
            raise BadSettings(*problems)
        for entry in value("no_proxy").lower().replace(",", " ").split() if by_scheme else ():
            if entry == "*":
                return cls()
            try:
                exempt.append(parse_exempt(entry))
            except ValueError:
                ignored.append(entry)
        return cls(by_scheme, tuple(exempt), tuple(ignored))

    def find(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy on the way to a host; None if none is, or the host needs none.

        `scheme` is http, https, ws or wss; `host` a name in any case, or an address without
        brackets; `port` the one that is connected to. A name in `exempt` covers the domains
        below it, as with curl.
        """
        try:
            address = ip_address(host)
        except ValueError:
            address = None
        for exempt, only_port in self.exempt:
            if isinstance(exempt, str):
                covered = f".{host.lower().rstrip('.')}".endswith(f".{exempt}")
            else:
                covered = address is not None and address in exempt
            if covered and only_port in (None, port):
                return None
        return self.by_scheme.get(scheme.replace("ws", "http"), self.by_scheme.get("all"))
