"""What the network, the feed and the sources are up to, and for how long."""

import random
from bisect import bisect_right
from collections.abc import Mapping
from math import inf


class Faults:
    """A series of moods drawn by weight, each for a time of the mean `mean` in seconds."""

    def __init__(
        self, chance: random.Random, moods: Mapping[str, float], mean: float, length: float
    ) -> None:
        self._begins: list[float] = []
        self._moods: list[str] = []
        at = 0.0
        while at < length:
            self._begins.append(at)
            self._moods += chance.choices(list(moods), list(moods.values()))
            at += chance.expovariate(1 / mean)

    def at(self, now: float) -> tuple[str, float]:
        """The mood of the moment, and when it ends."""
        i = bisect_right(self._begins, now) - 1
        return self._moods[i], self._begins[i + 1] if i + 1 < len(self._begins) else inf

    def during(self, begin: float, end: float) -> set[str]:
        """Every mood of a span of time."""
        first = max(0, bisect_right(self._begins, begin) - 1)
        return set(self._moods[first : bisect_right(self._begins, end)])
