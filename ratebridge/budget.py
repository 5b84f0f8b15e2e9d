"""How often a source may be asked, whatever the feed requests: token buckets. Pure.

The quota that a source reports is obeyed as well; the budget holds before any report.
"""

from typing import Final

import attrs

BURST: Final = 62  # the days of two months
RESERVE: Final = 5  # the last answers of a burst: they are for today's table
MONTH: Final = 30 * 86400.0  # s
ATTEMPT_EVERY: Final = 1.0  # s for another attempt; an attempt without an answer costs no more


@attrs.frozen
class Budget:
    """What a source may be asked for: `burst` answers at once, then one every `every` seconds."""

    burst: int
    every: float

    @classmethod
    def of_month(cls, calls: int) -> "Budget":
        """A budget of `calls` answers in a month."""
        return cls(BURST, MONTH / calls)


@attrs.define
class TokenBucket:
    """At most `size` tokens, and a new one every `every` seconds. Times are monotonic seconds."""

    size: int
    every: float
    _tokens: float = attrs.field(init=False)
    _at: float = attrs.field(default=0.0, init=False)

    @_tokens.default
    def _full(self) -> float:
        return float(self.size)

    def left(self, now: float) -> float:
        """How many tokens there are."""
        return min(self.size, self._tokens + (now - self._at) / self.every)

    def wait(self, now: float, keep: int = 0) -> float:
        """Seconds until one can be taken with `keep` left over; 0 for now."""
        missing = keep + 1 - self.left(now)
        return missing * self.every if missing > 1e-9 else 0.0

    def take(self, now: float) -> None:
        """Take a token."""
        self._tokens = self.left(now) - 1
        self._at = now

    def give_back(self, now: float) -> None:
        """Return a token."""
        self._tokens = self.left(now) + 1  # `left` is at most the size
        self._at = now


class Allowance:
    """What is left of a budget: answers, and attempts, of which failed ones count too."""

    def __init__(self, budget: Budget) -> None:
        self.budget: Final = budget
        self._answers = TokenBucket(budget.burst, budget.every)
        self._attempts = TokenBucket(budget.burst, ATTEMPT_EVERY)

    def wait(self, now: float, keep: int) -> float:
        """Seconds until the source may be asked with `keep` answers left over; 0 for now."""
        return max(self._answers.wait(now, keep), self._attempts.wait(now))

    def ask(self, now: float) -> None:
        """Count an attempt."""
        self._answers.take(now)
        self._attempts.take(now)

    def unanswered(self, now: float) -> None:
        """Return the answer of an attempt that got none: the source does not count it."""
        self._answers.give_back(now)
