"""The number of threads of a step, chosen by timing: with a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tensormd.models.inference import threads as module
from tensormd.models.inference.threads import ThreadChoice, candidates

Time = Callable[[float, int], float]
"""Seconds of a step at a time with a number of threads."""


class Machine:
    """A clock, and steps that take known times."""

    def __init__(self, cores: int, time: Time, atoms: int = 166) -> None:
        self.now, self.cores, self.time = 0.0, cores, time
        self.choice = ThreadChoice(atoms, clock=lambda: self.now, cores=lambda: self.cores)
        self.used: list[int] = []

    def run(self, until: float, limit: int = 64) -> float:
        """Mean time of a step until then."""
        begin, steps = self.now, 0
        while self.now < until:
            number = self.choice.threads(limit)
            assert 1 <= number <= min(limit, self.cores)
            seconds = self.time(self.now, number)
            self.now += seconds
            self.choice.add(seconds)
            self.used.append(number)
            steps += 1
        return (self.now - begin) / steps


def amdahl(work: float, serial: float, wait: float) -> Time:
    """Steps that divide some work, and wait for every thread."""
    return lambda now, number: serial + work / number + wait * number


MACHINES: dict[str, tuple[int, Time]] = {
    "two idle cores, two are faster": (2, amdahl(1.8e-3, 1e-4, 5e-5)),
    "two idle cores, one is faster": (2, amdahl(4e-4, 1e-4, 3e-4)),
    "two busy cores": (2, lambda now, number: (2.7e-3, 9e-3)[number - 1]),
    "64 cores, a few are best": (64, amdahl(2e-3, 1e-4, 1e-4)),
    "64 cores, all are best": (64, amdahl(0.2, 2e-4, 1e-6)),
    "no difference": (2, lambda now, number: 2e-3),
}


@pytest.mark.parametrize("atoms", [24, 166])
@pytest.mark.parametrize("name", MACHINES)
def test_at_most_a_tenth_slower_than_the_best_fixed_number(name: str, atoms: int) -> None:
    cores, time = MACHINES[name]
    machine = Machine(cores, time, atoms)
    machine.run(until=60 * time(0.0, 1))  # from the first number to the best
    mean = machine.run(until=machine.now + 20 + 100 * time(0.0, 1))
    assert mean < 1.1 * min(time(0.0, number) for number in candidates(cores))


@pytest.mark.parametrize("seed", range(5))
def test_times_that_vary(seed: int) -> None:
    """A busy machine: steps wait for their turn now and then, with two threads more often."""
    random = np.random.default_rng(seed)

    def time(now: float, number: int) -> float:
        pause = 6e-3 if random.random() < (0.1, 0.6)[number - 1] else 0.0
        return (2e-3, 1.2e-3)[number - 1] * random.uniform(0.9, 1.2) + pause

    mean = Machine(2, time).run(until=60)
    assert mean < 1.1 * np.mean([time(0.0, 1) for _ in range(10_000)])


def test_follows_programs_that_come_and_go() -> None:
    def busy(now: float) -> bool:
        return 20 <= now < 40

    machine = Machine(
        2, lambda now, number: ((3e-3, 8e-3) if busy(now) else (2e-3, 1.1e-3))[number - 1]
    )
    assert machine.run(until=20) < 1.1 * 1.1e-3
    assert machine.run(until=40) < 1.2 * 3e-3  # two threads for the first second
    assert machine.used[-1] == 1
    machine.run(until=45)
    assert machine.run(until=60) < 1.1 * 1.1e-3
    assert machine.used[-1] == 2


def test_begins_by_the_number_of_atoms() -> None:
    for atoms, number in ((60, 1), (61, 4)):
        assert ThreadChoice(atoms, cores=lambda: 4).threads(8) == number


def test_respects_limits_that_change() -> None:
    machine = Machine(8, amdahl(8e-3, 0.0, 0.0))
    machine.run(until=5)
    assert machine.used[-1] == 8
    machine.run(until=10, limit=3)  # torch.set_num_threads(3)
    machine.run(until=15, limit=64)
    assert machine.used[-1] == 8
    machine.cores = 8
    assert str(machine.choice).startswith("8 of at most 8 (1.33 ms a step with 6, 1 ms")
    before = len(machine.used)
    machine.run(until=17, limit=1)
    assert set(machine.used[before:]) == {1}


def test_follows_an_affinity_mask() -> None:
    machine = Machine(4, amdahl(8e-3, 0.0, 0.0))
    machine.run(until=5)
    assert machine.used[-1] == 4
    cores, now = 2, machine.now
    machine.choice._read_cores = lambda: cores
    for k in range(1000):
        machine.now = now + 0.01 * k
        machine.choice.threads(8)
        machine.choice.add(0.01)
    assert machine.choice.threads(8) <= 2
    assert "of at most 2" in str(machine.choice)


def test_one_core_is_never_tried() -> None:
    machine = Machine(1, lambda now, number: 1e-3)
    machine.run(until=5)
    assert set(machine.used) == {1}
    assert str(machine.choice) == "1 of at most 1 (166 atoms, not timed yet)"


def test_candidates() -> None:
    assert candidates(1) == [1]
    assert candidates(2) == [1, 2]
    assert candidates(10) == [1, 2, 3, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/\n", {"cpu.max": "300000 100000"}, 3),
        (
            "5:cpu,cpuacct:/host/path\n3:memory:/x\n",
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "5:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            2**31,
        ),
        ("0::/\n", {}, 2**31),
    ],
)
def test_quotas_of_control_groups(
    own: str, files: dict[str, str], cores: int, tmp_path: Path
) -> None:
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    assert module._quota(groups, tmp_path / "own") == cores
    assert module._quota(groups, tmp_path / "absent") == 2**31
