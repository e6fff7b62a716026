"""The load of the drill: random cases, and an application that registers and requests them through any outage."""

import random
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from simulation.api_client import ApiClient
from simulation.cases import MODELS, Case, CaseRun, Entry
from simulation.provider import pictures
from simulation.provider.client import Standin, StandinError
from simulation.provider.ledger import LedgerIndex
from worker.local_deployment import LocalDeployment

REQUEST_SHARE: Final = 0.15  # of job requests among the jobs
REGISTERED_OUTPUTS: Final = 3
REQUESTED_OUTPUTS: Final = 2
PROJECTS: Final = 20
SCENES: Final = 5
LONG_SECONDS: Final = 600.0  # time limit of an entry that must yield files: longer than any fault delays it
SHORT_SECONDS: Final = 4.0  # time limit of an entry that takes SLOW_SECONDS
SLOW_SECONDS: Final = 12.0
LIFE_SECONDS: Final = 6 * 3600.0  # of a job and of its files: longer than a clock jump

# Of registered predictions every eighth yields pictures above the limit of the drill, which is raised at its end.
MAX_PIXELS: Final = 2_000_000
REFUSED_EVERY: Final = 8
REFUSED_SIZE: Final = {"width_px": 2048, "height_px": 1536}

# Percentages. Faults of registered predictions:
WEBHOOKS: Final = {
    "late": 4, "double": 4, "double_new_id": 4, "missing": 4, "out_of_order": 4, "bad_signature_first": 2,
}  # fmt: skip
KEPT_FAULTS: Final = {
    "slow": 15, "429_once": 3, "500_twice": 3, "truncated_once": 3, "reset_once": 3, "chunked": 2, "redirect": 2,
}  # fmt: skip
DEAD_FAULTS: Final = {"404_always": 2, "corrupt": 2, "web_page": 2, "private_redirect": 1}
# Faults of entries: of the submission; reasons to yield no files; of webhooks and files.
SUBMITS: Final = {"lost": 12, "500_after": 8, "no_id": 8, "busy": 12}
FAILURES: Final = {"failed": 9, "invalid": 6, "no_credit": 4, "dead files": 6, "slow": 9}
ENTRY_WEBHOOKS: Final = {"late": 8, "double": 6, "double_new_id": 6, "missing": 10, "out_of_order": 4}
ENTRY_FILES: Final = {"500_twice": 5, "truncated_once": 5, "slow": 5}

_FORMATS: Final = (*pictures.FORMATS, *pictures.FILE_FORMATS)
_FAILURE_SCRIPTS: Final[dict[str, dict[str, Any]]] = {
    "failed": {"status": "failed"},
    "invalid": {"submit": "invalid"},
    "no_credit": {"submit": "no_credit"},
    "dead files": {"faults": {"0": "404_always", "1": "web_page"}},
    "slow": {"duration_s": SLOW_SECONDS},
}


def draw_registered_case(rng: random.Random, number: int) -> Case:
    webhook = _draw(rng, WEBHOOKS) or "ok"
    dead_fault, kept_fault = _draw(rng, DEAD_FAULTS), _draw(rng, KEPT_FAULTS)
    faults: dict[str, str] = {}
    for fault in (kept_fault, dead_fault):
        if fault:
            faults[str(rng.randrange(REGISTERED_OUTPUTS))] = fault
    script = {
        "duration_s": round(rng.uniform(0.1, 2.0), 2),
        "outputs": REGISTERED_OUTPUTS,
        "formats": [_FORMATS[(number + index) % len(_FORMATS)] for index in range(REGISTERED_OUTPUTS)],
        "seed": number % 50,
        "webhook": webhook,
        "output_life_s": LIFE_SECONDS,
        "faults": faults,
    }
    if number % REFUSED_EVERY == REFUSED_EVERY - 3:
        script, faults = {**script, **REFUSED_SIZE, "faults": {}}, {}
    name, is_partial = f"job {number}", any(fault in DEAD_FAULTS for fault in faults.values())
    return Case(
        name, input={"prompt": name, "standin": script}, state="partial" if is_partial else "succeeded",
        **_place(number),
    )  # fmt: skip


def draw_job_request(rng: random.Random, number: int) -> Case:
    """Return a job request with one or two entries, with or without a placeholder; its result is not exactly known."""
    chain = tuple(_draw_entry(rng, number) for _ in range(rng.choice((1, 2))))
    return Case(
        f"job request {number}", chain=chain, placeholder=rng.random() < 0.5, is_repeated=rng.random() < 0.3,
        state=None, deadline_seconds=LIFE_SECONDS, **_place(number),
    )  # fmt: skip


def _draw_entry(rng: random.Random, number: int) -> Entry:
    provider, failure, submit = rng.choice(tuple(MODELS)), _draw(rng, FAILURES), _draw(rng, SUBMITS)
    webhook, file_fault = _draw(rng, ENTRY_WEBHOOKS), _draw(rng, ENTRY_FILES)
    if provider == "openai" and failure == "dead files":  # its files are in the response
        failure = "failed"
    if failure in ("invalid", "no_credit"):  # these are faults of the submission
        submit = None
    script: dict[str, Any] = {
        "duration_s": round(rng.uniform(0.2, 2.0), 2),
        "outputs": REQUESTED_OUTPUTS,
        "formats": ["png", "jpeg"],
        "seed": number % 50,
        "submit": submit or "ok",
        "submit_times": rng.choice((1, 2)) if submit == "busy" else 0,
        "webhook": (webhook if provider != "openai" and failure != "slow" else None) or "ok",
        "webhook_life_s": 600.0,
        "output_life_s": LIFE_SECONDS,
        "faults": {str(rng.randrange(REQUESTED_OUTPUTS)): file_fault} if file_fault and provider != "openai" else {},
        **_FAILURE_SCRIPTS.get(failure or "", {}),
    }
    return Entry(provider, script, SHORT_SECONDS if failure == "slow" else LONG_SECONDS, failure)


def _draw(rng: random.Random, percentages: Mapping[str, int]) -> str | None:
    number = rng.randrange(100)
    for name, percentage in percentages.items():
        if number < percentage:
            return name
        number -= percentage
    return None


def _place(number: int) -> dict[str, Any]:
    return {"project": f"project {number % PROJECTS}", "scene": number // PROJECTS % SCENES + 1}


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
        while True:
            try:
                external_id = str(self._standin.create_prediction(case.input or {}, self._webhook)["id"])
                return CaseRun(case, (self.client.register(case, external_id),), external_id)
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
