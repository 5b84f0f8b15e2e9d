"""How often a source may be asked, whatever the feed requests: a token bucket. Pure.

A burst of `BURST` calls, then one each `every` seconds. What a source itself reports of its quota
is obeyed as well.
"""

from typing import Final

import attrs

BURST: Final = 62  # calls: the days of two months
FOR_TODAY: Final = 5  # the last calls of a burst are kept for the rates of today
UNANSWERED: Final = 0.02  # of a call: what an attempt costs that the source did not answer


@attrs.define
class Budget:
    """At most `BURST` calls, and one more each `every` seconds.

    Times are seconds of a monotonic clock, such as `trio.current_time()`. So in any span of time
    there are at most `BURST` calls and one for each `every` seconds of it, whatever is asked for.
    A call is counted when it is begun.
    """

    every: float
    _left: float = attrs.field(default=float(BURST), init=False)
    _at: float = attrs.field(default=0.0, init=False)

    def left(self, now: float) -> float:
        """How many calls there are at `now`; a part of one is no call yet."""
        return min(BURST, self._left + (now - self._at) / self.every)

    def wait(self, now: float, keep: int = 0) -> float:
        """Seconds until a call can be made with `keep` left over; 0 for now."""
        missing = keep + 1 - self.left(now)
        return missing * self.every if missing > 1e-9 else 0.0

    def take(self, now: float) -> None:
        """Count a call."""
        self._left, self._at = self.left(now) - 1, now

    def return_unanswered(self, now: float, *, whole: bool = False) -> None:
        """Take back most of a call that got no answer: a source does not count it.

        Of one that the month refuses, the `whole`.
        """
        self._left, self._at = self.left(now) + 1 - (0 if whole else UNANSWERED), now
