"""Some runs of the simulation, and a check that it can fail. Many more: scripts/simulate.py."""

import pytest
from simulation import INJECTED_BUGS, simulate

SEEDS = 100
LENGTH = 5.0  # simulated seconds at most; every timeout but two is shorter
# An injected bug needs some time and luck to show. The most that any took was eleven seeds.
SEEDS_TO_CATCH = 200
LENGTH_TO_CATCH = 30.0


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_no_run_breaks_an_invariant(first):
    for seed in range(first, first + 50):
        report = simulate(seed, length=LENGTH)
        again = f"uv run scripts/simulate.py --seed {seed} --length {LENGTH} --log"
        assert report.violations == (), again


def test_the_same_seed_brings_the_same_run_and_another_seed_another():
    logs: list[list[str]] = [[], [], []]
    for seed, log in zip((7, 7, 8), logs, strict=True):
        simulate(seed, length=LENGTH, log=log.append)
    assert logs[0] == logs[1] != logs[2]
    assert len(logs[0]) > 20


@pytest.mark.parametrize("name", INJECTED_BUGS)
def test_an_injected_bug_is_found(name):
    convicts = INJECTED_BUGS[name].convicts
    assert any(
        convicts in violation
        for seed in range(SEEDS_TO_CATCH)
        for violation in simulate(seed, length=LENGTH_TO_CATCH, inject=name).violations
    )
