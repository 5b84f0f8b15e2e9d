"""How often a source may be asked, whatever we are asked for: token buckets. Pure.

What a source says of its quota counts besides; this guards it before it has said a word.
"""

from typing import Final

import attrs

BURST: Final = 62  # two months of days at once
MONTH: Final = 30 * 86400.0  # s
TRY_EVERY: Final = 1.0  # s for another try; answers are dearer, and come back where there was none


@attrs.frozen
class Budget:
    """What a source can be asked for: `burst` answers at once, then one more every `every` seconds.

    The last `reserve` of them are for the table of today.
    """

    burst: int
    every: float
    reserve: int = 5

    @classmethod
    def of_month(cls, calls: int) -> "Budget":
        """A budget of so many answers in a month."""
        return cls(BURST, MONTH / calls)


@attrs.define
class TokenBucket:
    """`size` tokens at most, and a new one every `every` seconds. Times are monotonic seconds."""

    size: int
    every: float
    _tokens: float = attrs.field(init=False)
    _at: float = attrs.field(default=0.0, init=False)

    @_tokens.default
    def _full(self) -> float:
        return float(self.size)

    def left(self, now: float) -> float:
        """The tokens that are in it."""
        return min(self.size, self._tokens + (now - self._at) / self.every)

    def wait(self, now: float, keep: int = 0) -> float:
        """Seconds until one can be taken that leaves `keep`; 0 when it can be now."""
        missing = keep + 1 - self.left(now)
        return missing * self.every if missing > 1e-9 else 0.0

    def take(self, now: float) -> None:
        """Take one."""
        self._tokens = self.left(now) - 1
        self._at = now

    def give_back(self, now: float) -> None:
        """Put one back that was taken in vain."""
        self._tokens = self.left(now) + 1  # `left` never tells of more than there can be
        self._at = now


class Allowance:
    """What is left of a budget: of answers, and of tries, which the failed ones are too."""

    def __init__(self, budget: Budget) -> None:
        self.budget: Final = budget
        self._answers = TokenBucket(budget.burst, budget.every)
        self._tries = TokenBucket(budget.burst, TRY_EVERY)

    def wait(self, now: float, keep: int) -> float:
        """Seconds until the source may be asked, so that `keep` answers are left; 0 for now."""
        return max(self._answers.wait(now, keep), self._tries.wait(now))

    def ask(self, now: float) -> None:
        """The source is asked."""
        self._answers.take(now)
        self._tries.take(now)

    def unanswered(self, now: float) -> None:
        """It gave no answer, which it does not count."""
        self._answers.give_back(now)
