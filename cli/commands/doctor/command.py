"""`moorage doctor`: check settings and servers, with advice for each problem."""

import importlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import click

from cli import console
from cli.commands.doctor import checks
from cli.commands.doctor.checks import CheckResult, fail, ok, warn
from cli.console import format_age
from moorage import settings as settings_module
from moorage.errors import ConfigError
from moorage.settings import Settings
from worker import boot, status

SILENT_SECONDS: Final = 3.0  # without a further result: with the start of Python below five
LATE_SECONDS: Final = 30.0
PROCESSES_SECONDS: Final = 8.0  # collecting the status takes three
# Problems of `moorage status` that a process causes which is missing, frozen or too busy.
WORK: Final = {"workers_silent", "queue_without_worker", "worker_silent", "lease_late", "overdue", "keep_stalled"}

Check = Callable[[Settings], Iterable[CheckResult]]


@click.command()
@console.json_flag
def doctor(as_json: bool) -> None:
    """Check settings and servers, with advice for each problem. Exit status 1 if a check fails."""
    results, pending = [], _run_checks()
    while True:
        with console.Progress("checking settings and servers ..."):
            result = next(pending, None)
        if result is None:
            break
        results.append(result)
        if not as_json:
            _print_result(result)
    if as_json:
        console.print_json(results)
    if any(result.level == "fail" for result in results):
        raise SystemExit(1)


def _print_result(result: CheckResult) -> None:
    advice = f"  ({result.advice})" if result.advice else ""
    text = console.escape_control_chars(f"{result.what}{advice}")
    click.echo("\n".join(console.wrap_text(text, f"{result.level:<5} ")))


def _run_checks() -> Iterator[CheckResult]:
    try:
        settings = settings_module.get_settings()
    except ConfigError as error:
        yield from (fail(line, "correct it; see .env.example") for line in str(error).splitlines())
        return
    yield ok("settings can be read")
    importlib.import_module("worker.celery")  # takes a part of the time for answers otherwise
    # All at once, so that several silent servers cost no more time than one.
    postgres = BackgroundCheck("PostgreSQL", checks.check_postgres, settings)
    broker = BackgroundCheck("the broker", checks.check_broker, settings)
    storage = BackgroundCheck("storage", checks.check_buckets, settings)
    replicate = BackgroundCheck("Replicate", checks.check_replicate_token, settings)
    processes = BackgroundCheck("workers and beat", lambda _: _check_processes(), settings, PROCESSES_SECONDS)
    yield from postgres.list_results()
    yield from broker.list_results()
    yield from storage.list_results()
    yield from checks.check_provider_settings(settings)
    yield from replicate.list_results()
    yield from checks.check_public_url(settings)
    if not (postgres.has_failed or broker.has_failed):
        yield from processes.list_results()


def _check_processes() -> Iterator[CheckResult]:
    """Check that every queue has a worker that answers and works, and beat runs. Requires PostgreSQL and the broker."""
    deps = boot.get_deps()
    data = status.collect_status(deps, deps.database)
    if data["workers"]:
        yield ok(f"workers: {', '.join(data['workers'])}")
    yield from (fail(x.text, f"{x.remedy}; docs/runbook.md#{x.runbook}") for x in data["problems"] if x.code in WORK)
    yield _check_beat(data)


def _check_beat(data: dict[str, Any]) -> CheckResult:
    sweeps = {x["sweep"]: x["last_at"] for x in data.get("sweeps") or () if "period_seconds" in x}
    if not sweeps:
        return fail("beat: its ticks cannot be read", "see above")
    last_at = max(filter(None, sweeps.values()), default=None)
    age = format_age(last_at, data["at"])
    if last_at is None or (data["at"] - last_at).total_seconds() > LATE_SECONDS:
        return fail(f"last tick of beat: {age}", "start one: moorage beat (and a worker for the queue sweeps)")
    if missing := sorted(name for name, at in sweeps.items() if at is None):
        return warn(f"these sweeps never ran: {', '.join(missing)}", "check again in a minute")
    return ok(f"beat runs; last tick: {age}")


class BackgroundCheck:
    """Runs a check from its creation. One that is silent for a time is abandoned, and has failed."""

    def __init__(self, name: str, check: Check, settings: Settings, seconds: float = SILENT_SECONDS) -> None:
        self.has_failed = False
        self._name = name
        self._results: queue.SimpleQueue[CheckResult | None] = queue.SimpleQueue()
        self._seconds = seconds
        self._silent_at = time.monotonic() + seconds
        threading.Thread(target=self._run, args=(check, settings), name=name, daemon=True).start()

    def _run(self, check: Check, settings: Settings) -> None:
        try:
            for result in check(settings):
                self._results.put(result)
        except Exception as error:  # noqa: BLE001 (the outermost line of a thread: the other checks go on)
            self._results.put(fail(f"{self._name}: {type(error).__name__}: {error}", "see docs/reference/errors.md"))
        self._results.put(None)

    def list_results(self) -> Iterator[CheckResult]:
        """Yield the results as they arrive."""
        while (result := self._await_result()) is not None:
            self.has_failed = self.has_failed or result.level == "fail"
            yield result

    def _await_result(self) -> CheckResult | None:
        try:
            result = self._results.get(timeout=max(self._silent_at - time.monotonic(), 0.0))
        except queue.Empty:
            self._results = queue.SimpleQueue()  # abandons the thread
            self._results.put(None)
            advice = "see whether it hangs, or whether the network drops packets"
            return fail(f"{self._name}: no answer within {self._seconds:g} s", advice)
        self._silent_at = time.monotonic() + self._seconds
        return result
