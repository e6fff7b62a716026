"""The load of the drill: an application that registers predictions and requests jobs, through any outage."""

import random
import threading
import time
from collections.abc import Iterable

from simulation.api_client import ApiClient
from simulation.cases import Body, CaseRun
from simulation.chaos.cases import REQUEST_SHARE, draw_job_request, draw_registered_case
from simulation.provider.client import Standin, StandinError
from simulation.provider.ledger import LedgerIndex
from simulation.stack import LocalDeployment


class LoadGenerator:
    """Starts jobs at a constant rate in its own thread, and repeats each request until it is accepted."""

    def __init__(self, local: LocalDeployment, standin: Standin, *, jobs: int, seconds: float, seed: int) -> None:
        self.client = ApiClient(local, "drill", retries=True)
        self._standin, self._webhook = standin, f"{local.url}/webhooks/replicate"
        self._jobs, self._seconds = jobs, seconds
        self._registered_rng = random.Random(seed)  # noqa: S311 (reproducible on purpose)
        self._requests_rng = random.Random(f"job requests {seed}")  # noqa: S311 (reproducible on purpose)
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)
        self.runs: list[CaseRun] = []
        self.error: BaseException | None = None  # that ended the thread

    def start(self) -> None:
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Return True if every job was acknowledged, or the thread has failed."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            started = time.monotonic()
            for number in range(self._jobs):
                time.sleep(max(0.0, started + number * self._seconds / self._jobs - time.monotonic()))
                is_request = self._requests_rng.random() < REQUEST_SHARE
                self.runs.append(self._request_job(number) if is_request else self._register(number))
        except Exception as error:  # noqa: BLE001 (outermost line of a thread; the drill raises it)
            self.error = error

    def _register(self, number: int) -> CaseRun:
        case = draw_registered_case(self._registered_rng, number)
        external_id = self._create_prediction(case.input or {})
        return CaseRun(case, (self.client.register(case, external_id),), external_id)

    def _create_prediction(self, input_: Body) -> str:
        while True:
            try:
                return str(self._standin.create_prediction(input_, self._webhook)["id"])
            except StandinError:  # an outage of the drill
                time.sleep(0.5)

    def _request_job(self, number: int) -> CaseRun:
        """Request a job, sometimes twice, like an application that did not receive the response."""
        case = draw_job_request(self._requests_rng, number)
        job_ids = tuple(self.client.create_job(case) for _ in range(2 if case.is_repeated else 1))
        return CaseRun(case, job_ids)


def is_reported(index: LedgerIndex, runs: Iterable[CaseRun]) -> bool:
    """Return True if all predictions of job requests have ended, and their webhooks were acknowledged."""
    return all(
        line["prediction"] in index.statuses and (line["prediction"] in index.reported or not entry.sends_webhook)
        for run in runs
        for number, entry in enumerate(run.case.chain)
        for line in index.created.get(run.case.prompt(number), ())
    )
