"""A check in a thread, with a limit to its silence."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cli.commands.doctor.checks import CheckResult, fail
from moorage.settings import Settings

SILENT_SECONDS: Final = 3.0  # without a further result: with the start of Python below five

Check = Callable[[Settings], Iterable[CheckResult]]


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
