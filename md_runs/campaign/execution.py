"""The runs of a campaign on workers of dask: on this machine, a running scheduler, a batch system.

What a scheduler does is left to dask: which worker runs what, retries, workers that die and come.
Tasks travel there and states back; results are files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs.errors import RunStopped
from ..runs.signals import StopRequest
from .folder import DONE, ENDED, FAILED, LOST, WAITING, Campaign, read_record, write_record
from .plan import Task
from .work import run_task

if TYPE_CHECKING:
    from distributed import Client, Future

LOOPBACK = "127.0.0.1"
NO_DASHBOARD = {"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}
"""Options of a scheduler: its HTTP server has no pages, and is at a free port of this machine."""
MOST_SUBMISSIONS = 10
"""Submissions after which a run is lost whose workers die before it begins."""
SECONDS_TO_ANSWER = 5
SECONDS_TO_RESTART = 60
"""A worker that was killed is given up and replaced if it takes longer; it has to import torch."""
POLL = 0.5
"""Seconds between looks at the scheduler."""

BATCH = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
    "oar": "OARCluster",
}
"""Batch systems, each with its class of dask-jobqueue."""

Tell = Callable[[Counter[str], int], None]
"""Called with the number of runs in each state, and that of the workers."""


@dataclass(frozen=True)
class Workers:
    """Where runs are executed: one of the three."""

    scheduler: str | None = None
    """Address of a running dask scheduler, or its scheduler file."""
    batch: str | None = None
    """Name of a batch system."""
    count: int | None = None
    """Workers to start; None: one for every core that this process may use."""

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"--workers is {self.count}: expected 1 or more")
        if self.batch is not None and self.batch not in BATCH:
            raise ValueError(f"--batch is {self.batch!r}: expected one of {', '.join(BATCH)}")
        if self.batch is not None and self.count is None:
            raise ValueError("--batch needs --workers N, the number of workers to ask for")


def execute(
    campaign: Campaign,
    workers: Workers,
    *,
    retries: int = 3,
    retry_failed: bool = False,
    tell: Tell = lambda states, workers: None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Run everything of a campaign that is left.

    Parameters
    ----------
    campaign
        Locked by this process.
    workers
        Where.
    retries
        How often a run whose worker dies, or which cannot write, is tried again.
    retry_failed
        Whether runs that failed before are tried again too.
    tell
        Called about twice a second.
    warn
        Called with a line that a user should know.

    Raises
    ------
    ValueError
        If dask is not installed, or no scheduler answers.
    RunStopped
        If the scheduler ends before the runs do.
    Interrupted
        After SIGINT or SIGTERM.
    """
    states = _states(campaign, (FAILED, LOST) if retry_failed else (LOST,))
    if not any(_ready(task, states) for task in campaign.tasks.values()):
        return
    with (
        StopRequest() as stop,
        _connect(workers, campaign.model.threads or 1, retries) as client,
    ):
        _Execution(campaign, client, states, retries, tell, warn).until_done(stop)


def _states(campaign: Campaign, again: Collection[str]) -> dict[str, str]:
    """The state of every run; those in a state of ``again`` wait from now on."""
    states = {}
    for name in campaign.tasks:
        record = read_record(campaign.path, name)
        if record.state in again:
            record.state = WAITING
            write_record(campaign.path, name, record)
        states[name] = record.state
    return states


def _ready(task: Task, states: Mapping[str, str]) -> bool:
    """Whether a run has not ended, and has what it begins with."""
    return states[task.name] not in ENDED and (task.after is None or states[task.after] == DONE)


class _Execution:
    """The runs on their way to the workers and back."""

    def __init__(
        self,
        campaign: Campaign,
        client: Client,
        states: dict[str, str],
        retries: int,
        tell: Tell,
        warn: Callable[[str], None],
    ) -> None:
        self.campaign, self.client, self.states = campaign, client, states
        self._retries, self._tell, self._warn = retries, tell, warn
        self._warned = False
        self._submissions: Counter[str] = Counter()
        self._attempts_before = {
            name: len(read_record(campaign.path, name).attempts) for name in campaign.tasks
        }
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._running: dict[str, tuple[Task, Future]] = {}
        self._followers: dict[str, list[Task]] = {}
        for task in campaign.tasks.values():
            if task.after is not None:
                self._followers.setdefault(task.after, []).append(task)

    def until_done(self, stop: StopRequest) -> None:
        """Submit what is ready, and what follows from it, until nothing is left."""
        self._submit(self.campaign.tasks.values())
        told = 0.0
        while self._running:
            if stop.asked():
                raise stop.interrupted(f"stopped: {self._so_far()}")
            if time.monotonic() - told >= POLL:
                self._tell(Counter(self.states.values()), self._workers())
                told = time.monotonic()
            with contextlib.suppress(queue.Empty):
                self._take(self._ended.get(timeout=POLL))
        self._tell(Counter(self.states.values()), self._workers())

    def _submit(self, tasks: Iterable[Task]) -> None:
        campaign = self.campaign
        for task in tasks:
            if not _ready(task, self.states):
                continue
            self._submissions[task.name] += 1
            future = self.client.submit(
                run_task, str(campaign.path), task, campaign.model, campaign.digest,
                key=f"{campaign.path}/{task.name}/{self._submissions[task.name]}", pure=False,
                retries=self._retries,
            )  # fmt: skip
            self._running[future.key] = task, future
            future.add_done_callback(self._ended.put)

    def _take(self, future: Future) -> None:
        """A run has come back; those that begin with its result are next."""
        task, _ = self._running[future.key]
        state = LOST
        if future.status != "error":
            try:
                # Asked of the worker: a network file system may show an older record for seconds.
                state = future.result(timeout=POLL)
            except asyncio.TimeoutError:
                self._ended.put(future)  # the worker has died since, and another one is asked
                return
            except Exception as error:
                if future.status != "error":  # it is not the run's own error, which `_lose` reads
                    raise self._lost() from error
        del self._running[future.key]
        if future.status == "error" and not self._lose(task, future.exception()):
            self._submit([task])
            return
        self.states[task.name] = state
        if state == DONE:
            self._submit(self._followers.get(task.name, ()))

    def _lose(self, task: Task, error: BaseException) -> bool:
        """Record a run as lost, if that is what the error means."""
        from distributed import KilledWorker

        record = read_record(self.campaign.path, task.name)
        deaths = len(record.attempts) - self._attempts_before[task.name]
        if isinstance(error, KilledWorker):
            # dask also counts the deaths of workers at which a run only waited for its turn.
            if deaths <= self._retries and self._submissions[task.name] < MOST_SUBMISSIONS:
                return False
            reason = f"its worker died {deaths} times: out of memory?"
        else:
            reason = " ".join(str(error).split())
        write_record(self.campaign.path, task.name, replace(record, state=LOST, cause=reason))
        return True

    def _workers(self) -> int:
        """How many workers there are now."""
        try:
            threads = self.client.nthreads() if self.client.status == "running" else None
        except OSError:
            threads = None
        if threads is None:
            raise self._lost()
        if not self._warned and any(n > 1 for n in threads.values()):
            self._warned = True
            self._warn(
                "a worker has several threads, but does one run at a time: start workers with one "
                "thread each (dask worker --nthreads 1)"
            )
        return len(threads)

    def _lost(self) -> RunStopped:
        return RunStopped(f"the scheduler has ended: {self._so_far()}")

    def _so_far(self) -> str:
        done = sum(state in ENDED for state in self.states.values())
        return f"{done} of {len(self.states)} runs have ended; the same command does the others"


@contextlib.contextmanager
def _connect(workers: Workers, threads: int, retries: int) -> Iterator[Client]:
    """A client of a scheduler with workers, which are ended with it if they were started here."""
    try:
        import dask.system  # CPU_COUNT: cores of this process, by affinity and cgroups
        from distributed import Client
    except ImportError:
        raise ValueError(
            "a campaign runs on dask.distributed, which is not installed: "
            "pip install 'tensormd[campaign]', or pip install distributed"
        ) from None
    if workers.scheduler is not None:
        with _answering(workers.scheduler, Client) as client:
            yield client
        return
    settings = {
        "distributed.scheduler.allowed-failures": retries,
        "distributed.deploy.lost-worker-timeout": f"{SECONDS_TO_RESTART} s",
    }
    with dask.config.set(settings):
        count = workers.count or max(dask.system.CPU_COUNT // threads, 1)
        cluster = _local(count) if workers.batch is None else _batch(workers.batch)
        with cluster, Client(cluster) as client:
            cluster.adapt(minimum=count, maximum=count)  # replaces workers that do not come back
            yield client


def _answering(address: str, make: Callable[..., Client]) -> Client:
    """A client of the scheduler at an address.

    Raises
    ------
    ValueError
        If none answers.
    """
    where = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        return make(**where, timeout=SECONDS_TO_ANSWER)
    except (OSError, TimeoutError, ValueError) as error:
        raise ValueError(
            f"--scheduler {address}: no scheduler answers ({' '.join(str(error).split())}); start "
            "one with `dask scheduler`, or leave --scheduler out"
        ) from None


def _local(count: int) -> Any:
    """Workers on this machine, in processes of their own; the scheduler is in this one."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        host=LOOPBACK,
        scheduler_kwargs=NO_DASHBOARD,
        silence_logs=logging.CRITICAL,
    )


def _batch(system: str) -> Any:
    """Workers as jobs of a batch system, with the options of dask-jobqueue's configuration."""
    try:
        import dask_jobqueue
    except ImportError:
        raise ValueError(
            f"--batch {system} needs dask-jobqueue, which is not installed: "
            "pip install dask-jobqueue"
        ) from None
    return getattr(dask_jobqueue, BATCH[system])(scheduler_options=NO_DASHBOARD)
