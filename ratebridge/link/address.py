"""Where the feed is, as its URI means it (RFC 3986, RFC 6455 section 3). Pure."""

from base64 import b64encode
from urllib.parse import quote, unquote_to_bytes, urlsplit

import attrs


@attrs.frozen
class Address:
    """`host` as DNS wants it, `target` as the request line wants it.

    `authorization` is the value of that header, from the URI's user and password (basic
    authentication, RFC 7617). It and the target, which may hold a token, stand in no repr.
    """

    host: str
    port: int
    target: str = attrs.field(repr=False)
    secure: bool
    authorization: str | None = attrs.field(default=None, repr=False)

    @classmethod
    def parse(cls, uri: str) -> "Address":
        """Raises ValueError with what was expected. Nothing is quoted: a URI may hold a secret."""
        if not uri.isprintable() or " " in uri:
            raise ValueError("a URI without spaces or control characters")
        try:
            parts = urlsplit(uri)
            host, port = parts.hostname or "", parts.port
            if ":" not in host:
                host = host.encode("idna").decode("ascii")
        except ValueError:
            raise ValueError("a URI with a valid host and port") from None
        if parts.scheme not in ("ws", "wss"):
            raise ValueError("a URI that begins with ws:// or wss://")
        if "#" in uri:
            raise ValueError("a URI without a fragment")
        if not host or port == 0:
            raise ValueError("a URI with a host, and a port from 1 to 65535 if any")
        secure = parts.scheme == "wss"
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~")
        authorization = None
        if parts.username is not None:
            user = unquote_to_bytes(parts.username)
            if b":" in user:
                raise ValueError("a URI whose user has no colon")
            pair = user + b":" + unquote_to_bytes(parts.password or "")
            authorization = f"Basic {b64encode(pair).decode()}"
        return cls(host, port or (443 if secure else 80), target, secure, authorization)

    @property
    def authority(self) -> str:
        """The value of the Host header; the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"
