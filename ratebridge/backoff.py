"""How long to wait before the next connection. Pure: chance is passed in."""

from collections.abc import Callable
from typing import Final

import attrs

BLIP: Final = 0.1  # s, the bound of the first wait: most losses are blips, and back at once is best
STABLE_AFTER: Final = 5.0  # s up, with a heartbeat: or who accepts and closes gets a storm
EAGER: Final = 1.0  # s, the bound of the first waits after a stable link: a restart is over soon
EAGER_WAITS: Final = 8  # some 3 s in the mean; then the peer is down, and a storm is to be avoided
FORBIDS: Final = (401, 403, 407)  # HTTP: who asks again and again locks an account
FORBIDDEN: Final = 30.0  # s after one: nothing mends itself in a second
LONGEST_ASKED: Final = 60.0  # s, how far a peer's Retry-After is honoured


@attrs.define
class Backoff:
    """Full jitter: uniform between 0 and a bound that doubles from `base` to `cap` seconds.

    `jitter` gives numbers from 0 to 1. The first wait is below `BLIP`. After a
    stable link the next ones are below `EAGER` for `EAGER_WAITS` in all, so that
    the link is back a second after a restart of the peer.
    """

    base: float
    cap: float
    jitter: Callable[[], float]
    _failures: int = 0
    _was_stable: bool = False

    def reset(self) -> None:
        """The link was stable: up for `STABLE_AFTER` seconds, with a heartbeat."""
        self._failures = 0
        self._was_stable = True

    def next_wait(self, *, status: int | None = None, retry_after: float | None = None) -> float:
        """Seconds to wait now, after one more failure or loss.

        `status` is the HTTP status of a refused upgrade or tunnel, `retry_after` the seconds that
        its Retry-After asks for (RFC 9110, 10.2.3): it makes a wait longer, never shorter.
        """
        # The exponent is bounded so that months of an outage overflow nothing.
        bound = self.base * 2.0 ** min(self._failures - 1, 60) if self._failures else BLIP
        if self._was_stable and self._failures < EAGER_WAITS:
            bound = min(bound, EAGER)
        self._failures += 1
        wait = self.jitter() * min(bound, self.cap)
        if status in FORBIDS:
            wait = FORBIDDEN * (1 + 0.1 * self.jitter())
        if retry_after is not None:
            wait = max(wait, min(retry_after, LONGEST_ASKED))
        return wait
