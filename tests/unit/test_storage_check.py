"""The check of the buckets beside a worker: its result prevents the start, or arrives later."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moorage.errors import ConfigError
from worker import boot


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """Return the SIGTERMs that this process receives."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, before)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def refuse(_is_wanted: Callable[[], bool]) -> None:
    raise ConfigError("bucket x: the access key lacks a permission")


def test_a_result_within_the_wait_is_that_of_the_start(signals: list[int]) -> None:
    """As before the check had a process of its own: a refusal by storage ends the start with its reason."""
    boot.check_beside(lambda _: None, needs_storage=False, wait_seconds=60)
    with pytest.raises(ConfigError, match="lacks a permission"):
        boot.check_beside(refuse, needs_storage=False, wait_seconds=60)

    assert signals == []


def test_a_late_refusal_stops_the_worker(signals: list[int]) -> None:
    """A worker that may not write must not stay, also if storage was silent when it started."""
    released = multiprocessing.get_context("fork").Event()

    def check(is_wanted: Callable[[], bool]) -> None:
        assert is_wanted()
        released.wait(60)
        refuse(is_wanted)

    boot.check_beside(check, needs_storage=True, wait_seconds=0.01)
    assert signals == []
    released.set()

    until(lambda: signals == [signal.SIGTERM])


def test_a_late_refusal_does_not_stop_what_needs_no_storage(signals: list[int]) -> None:
    """Webhooks are ingested and sweeps run: the log and the doctor name what storage refuses."""
    released = multiprocessing.get_context("fork").Event()

    def check(is_wanted: Callable[[], bool]) -> None:
        released.wait(60)
        refuse(is_wanted)

    boot.check_beside(check, needs_storage=False, wait_seconds=0.01)
    released.set()

    until(lambda: multiprocessing.active_children() == [])
    assert signals == []


def test_a_late_success_and_a_dead_worker_end_the_check(signals: list[int]) -> None:
    """A process that repeats requests for a worker that is gone would do so for ever."""
    released = multiprocessing.get_context("fork").Event()

    def check(is_wanted: Callable[[], bool]) -> None:
        released.wait(60)

    boot.check_beside(check, needs_storage=True, wait_seconds=0.01)
    released.set()
    until(lambda: multiprocessing.active_children() == [])
    assert signals == []

    pipe = multiprocessing.Pipe(duplex=False)
    asked: list[bool] = []
    boot._run_beside(
        lambda is_wanted: asked.append(is_wanted()), *pipe, os.getpid(), True
    )  # not the parent of this one
    assert asked == [False]


def until(state: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not state():
        assert time.monotonic() < deadline, "the state did not come"
        time.sleep(0.01)
