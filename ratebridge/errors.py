"""The error tree, sorted by what the caller does about it.

==================  ========================================================
lost connection     `LinkFailed`: record the end, back off, reconnect
unreadable message  `Unreadable`: count it, log it cut short, read on
refused request     `Refused`: answer with an error message, read on
bad argument        `BadRequest`: correct the call; a retry does not help
no rate             `NoRate`: answer with an error message; later may differ
failed source       `SourceFailed`: remember it, ask the next source
bad settings        `BadSettings`: print every problem, exit with code 2
no start            `CannotStart`: print why, exit with code 1
==================  ========================================================

Anything else that is raised is a bug and propagates.
"""

from enum import StrEnum

import attrs


class Loss(StrEnum):
    """Why a connection ended, or an attempt to open one failed. Stable words of log and metrics."""

    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    PROXY = "proxy"
    CERTIFICATE = "certificate"
    CLIENT_CERTIFICATE = "client-certificate"
    TLS = "tls"
    REJECTED = "rejected"
    OPEN_TIMEOUT = "open-timeout"
    STALE = "stale"
    WRITE_STALLED = "write-stalled"
    CLOSED = "closed"
    RESET = "reset"
    PROTOCOL_ERROR = "protocol-error"
    OVERSIZED = "oversized"
    INTERNAL_ERROR = "internal-error"
    STOPPED = "stopped"


class Drop(StrEnum):
    """Why a message cannot be answered. Stable words of log and metrics."""

    TOO_LONG = "too-long"
    TOO_DEEP = "too-deep"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    NO_TYPE = "no-type"
    UNKNOWN_TYPE = "unknown-type"
    NO_ID = "no-id"


class Refusal(StrEnum):
    """Why a request gets an error reply. Stable words of log and metrics."""

    BAD_MESSAGE = "bad-message"
    BAD_STAKE = "bad-stake"
    BAD_CURRENCY = "bad-currency"
    BAD_DATE = "bad-date"
    UNKNOWN_CURRENCY = "unknown-currency"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    STOPPING = "stopping"
    INTERNAL_ERROR = "internal-error"


class FetchOutcome(StrEnum):
    """How a fetch from a rate source ended. Stable words of log and metrics."""

    OK = "ok"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    REDIRECT = "redirect"
    HTTP_4XX = "http-4xx"
    HTTP_5XX = "http-5xx"
    HTTP_OTHER = "http-other"
    BAD_BODY = "bad-body"
    BAD_TABLE = "bad-table"
    NO_TABLE = "no-table"
    IMPLAUSIBLE = "implausible"
    COARSE = "coarse"
    REFUSED_KEY = "refused-key"
    QUOTA_MINUTE = "quota-minute"
    QUOTA_MONTH = "quota-month"
    BUDGET = "budget"
    INTERNAL_ERROR = "internal-error"


class RatebridgeError(Exception):
    """The root of every error that ratebridge raises on purpose."""


@attrs.frozen(eq=False, str=False)
class LinkFailed(RatebridgeError):
    """The connection could not be opened, or has ended.

    `reason` is one word for logs and metrics, `detail` one line for people.
    `status` is the HTTP status of a refused upgrade, or of a proxy, `code` the close
    code of an open connection, `retry_after` the peer's Retry-After in seconds.
    """

    reason: Loss
    detail: str = ""
    code: int | None = None
    status: int | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Unreadable(RatebridgeError):
    """A frame that cannot be answered: no JSON, no object, no type, no id.

    The first argument is a `Drop` or its word.
    """

    @property
    def reason(self) -> Drop:
        return Drop(self.args[0])


@attrs.frozen(eq=False, str=False)
class Refused(RatebridgeError):
    """A request with an id (`id`, raw JSON) that cannot be converted.

    `kind` is a stable word for metrics, `text` one safe line for the trader.
    """

    id: bytes
    kind: Refusal
    text: str

    def __str__(self) -> str:
        return self.text


class BadRequest(RatebridgeError):
    """A bad argument of `convert`; `str()` is a line that quotes it."""


@attrs.frozen(eq=False, str=False)
class NoRate(RatebridgeError):
    """There is no rate for a request: none for that day or currency, or none at present."""

    kind: Refusal
    text: str

    def __str__(self) -> str:
        return self.text


@attrs.frozen(eq=False, str=False)
class SourceFailed(RatebridgeError):
    """One call to a rate source failed, or it has no usable quote.

    `text` is safe to show, and continues a sentence that begins with the source's name. `again`
    says whether the call may be repeated at once, `limited_for` for how many seconds the source
    must not be asked for anything.
    """

    outcome: FetchOutcome
    text: str
    again: bool = False
    limited_for: float | None = None

    def __str__(self) -> str:
        return self.text


class BadSettings(RatebridgeError):
    """The settings are invalid; the arguments are the problems, a line each."""


class CannotStart(RatebridgeError):
    """Valid settings that fail on this machine; `str()` is a line for people."""
