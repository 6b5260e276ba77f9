"""The threads that help with a step."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import Counter

import pytest

from tensormd.models.inference.kernels.cpu.team import Team
from tensormd.models.inference.kernels.cpu.workers import (
    Workers,
    new_team,
    run_with_workers,
)


def test_calls_run_beside_the_calling_thread() -> None:
    """All three wait for each other, so they run at the same time."""
    together = threading.Barrier(3, timeout=30)
    ran: Counter[int] = Counter()
    leaders: list[int] = []

    def call(team: Team, value: int) -> None:
        together.wait()
        ran[threading.get_ident()] += value
        if team.leads:
            leaders.append(threading.get_ident())

    run_with_workers(call, (new_team(1), 1), threads=3)
    deadline = time.monotonic() + 30
    while len(ran) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert list(ran.values()) == [1, 1, 1]
    assert leaders == [threading.get_ident()]


def test_one_thread_needs_no_other() -> None:
    found = []
    given = (new_team(1),)
    run_with_workers(lambda _: found.append(threading.current_thread()), given, threads=1)
    assert found == [threading.current_thread()]


def test_nobody_waits_for_threads_that_do_not_come() -> None:
    """Threads that are late take at most as many calls as they are; older ones are dropped."""
    workers, go = Workers(), threading.Event()
    ran: list[int] = []
    for _ in range(2):
        workers.offer(lambda: go.wait(30) and None, 1)  # keeps the only thread
    for number in range(100):
        workers.offer(lambda number=number: ran.append(number), 1)
    assert ran == []
    go.set()
    deadline = time.monotonic() + 30
    while 99 not in ran and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ran[-1] == 99
    assert len(ran) <= 2


def _sum_beside(_: int) -> int:
    found: list[int] = []
    run_with_workers(lambda team: found.append(team.number), (new_team(1),), threads=2)
    deadline = time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    return len(found)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork"
)
def test_a_fork_starts_its_own() -> None:
    assert _sum_beside(0) == 2
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_sum_beside, (0,)) == 2
