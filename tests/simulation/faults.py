"""The state of the network, the feed and the sources over time."""

import random
from bisect import bisect_right
from collections.abc import Mapping
from math import inf


class Faults:
    """A series of states drawn by weight, each for `mean` seconds on average."""

    def __init__(
        self, chance: random.Random, states: Mapping[str, float], mean: float, length: float
    ) -> None:
        self._begins: list[float] = []
        self._states: list[str] = []
        at = 0.0
        while at < length:
            self._begins.append(at)
            self._states += chance.choices(list(states), list(states.values()))
            at += chance.expovariate(1 / mean)

    def at(self, now: float) -> tuple[str, float]:
        """The present state, and when it ends."""
        i = bisect_right(self._begins, now) - 1
        return self._states[i], self._begins[i + 1] if i + 1 < len(self._begins) else inf

    def during(self, begin: float, end: float) -> set[str]:
        """Every state within a span of time."""
        first = max(0, bisect_right(self._begins, begin) - 1)
        return set(self._states[first : bisect_right(self._begins, end)])
