"""
The check of the buckets beside a worker that serves `quick` or `sweeps`, which need no storage.

It runs in a process of its own: a thread would exist when the pool forks. It ends with its result, or with the worker.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from moorage import logs
from moorage.errors import ConfigError

log = logs.get_logger(__name__)

WAIT_SECONDS: Final = 3.0  # long enough that a usual refusal by storage still prevents the start

CheckStorage = Callable[[Callable[[], bool]], None]


def check_beside(check: CheckStorage, *, needs_storage: bool, wait_seconds: float = WAIT_SECONDS) -> None:
    """
    Start the check, which repeats until its argument returns False, and return after its success or the wait.

    Raises ConfigError. A ConfigError after the wait stops this process by SIGTERM if it needs storage, and is logged.
    """
    context = multiprocessing.get_context("fork")
    results, sender = context.Pipe(duplex=False)
    args = (check, results, sender, os.getpid(), needs_storage)
    context.Process(target=_run, args=args, daemon=True).start()
    sender.close()
    with results:
        if not results.poll(wait_seconds):
            log.warning("boot.storage_unavailable", continues="without storage")
        elif problem := results.recv():
            raise ConfigError(problem)


def _run(check: CheckStorage, results: Connection, sender: Connection, worker_pid: int, needs_storage: bool) -> None:
    results.close()  # held open here, it would accept a result that nobody reads
    problem = ""
    try:
        check(lambda: os.getppid() == worker_pid)
    except ConfigError as error:
        problem = str(error)
    try:
        sender.send(problem)
    except BrokenPipeError:  # the worker waits no longer
        if not problem:
            log.info("boot.storage_available")
        elif os.getppid() == worker_pid:
            log.error("boot.storage_refused", error=problem, stops=needs_storage)
            if needs_storage:
                os.kill(worker_pid, signal.SIGTERM)
