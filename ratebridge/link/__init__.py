"""One websocket connection to the feed: where it is, how it is opened, and the frames on it."""

from .address import Address
from .link import Link, open_link

__all__ = ["Address", "Link", "open_link"]
