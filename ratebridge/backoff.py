"""How long to wait before the next connection. Pure: chance is passed in."""

from collections.abc import Callable
from typing import Final

import attrs

BLIP: Final = 0.1  # s, the bound of the first wait: most losses are blips, and back at once is best
PROOF: Final = 5.0  # s up, and a heartbeat: below that a peer that accepts and closes gets a storm
FORBIDDEN: Final = 30.0  # s after a 401 or 403: nothing mends itself in a second
LONGEST_ASKED: Final = 60.0  # s, how far a peer's Retry-After is honoured


@attrs.define
class Backoff:
    """Full jitter: uniform between 0 and a bound that doubles from `base` to `cap` seconds.

    `jitter` gives numbers from 0 to 1. The first wait after a reset is below
    `BLIP`. (The figures are simulated: back within 0.1 s of a blip, 1.5 s in the
    median after an outage of any length.)
    """

    base: float
    cap: float
    jitter: Callable[[], float]
    _failures: int = 0

    def reset(self) -> None:
        """The link has proved itself."""
        self._failures = 0

    def next_wait(self, *, status: int | None = None, retry_after: float | None = None) -> float:
        """Seconds to wait now; `status` and `retry_after` are those of a refused upgrade."""
        failures = self._failures
        self._failures += 1
        if failures == 0:
            wait = self.jitter() * min(BLIP, self.cap)
        else:
            # The exponent is bounded so that months of an outage overflow nothing.
            wait = self.jitter() * min(self.cap, self.base * 2.0 ** min(failures - 1, 60))
        if status in (401, 403):
            wait = FORBIDDEN * (1 + 0.1 * self.jitter())
        if retry_after is not None:
            wait = max(wait, min(retry_after, LONGEST_ASKED))
        return wait
