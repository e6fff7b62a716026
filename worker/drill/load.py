"""The drill's load: an application that starts predictions at the stand-in and registers them, through any outage."""

import random
import threading
import time
from typing import Any, Final

import requests

from embedded.standin.client import Standin, StandinError
from worker.demo.drive import Started
from worker.demo.plan import Case
from worker.local import Local

OUTPUTS_A_JOB: Final = 3
PROJECTS: Final = 20
SCENES: Final = 5

# How often each kind of trouble comes from the provider itself, of 100 jobs.
WEBHOOKS: Final = {
    "late": 4,
    "double": 4,
    "double_new_id": 4,
    "missing": 4,
    "out_of_order": 4,
    "bad_signature_first": 2,
}
KEPT_FAULTS: Final = {
    "slow": 15,
    "429_once": 3,
    "500_twice": 3,
    "truncated_once": 3,
    "reset_once": 3,
    "chunked": 2,
    "redirect": 2,
}
DEAD_FAULTS: Final = {"404_always": 2, "corrupt": 2, "web_page": 2, "private_redirect": 1}


class Application:
    """Starts jobs at an even pace in a thread of its own; an application repeats a registration until it is taken."""

    def __init__(self, local: Local, standin: Standin, *, jobs: int, seconds: float, seed: int) -> None:
        self._local, self._standin = local, standin
        self._jobs, self._seconds = jobs, seconds
        self._random = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {local.secrets['api_token']}"
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)
        self.started: list[Started] = []
        self.refusals = 0
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Return whether every job has been started and registered."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        """Start every job at its time: the outermost line of a thread."""
        try:
            begun = time.monotonic()
            for number in range(self._jobs):
                wait = begun + number * self._seconds / self._jobs - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                self.started.append(self._one(number))
        except Exception as error:  # noqa: BLE001 (border: a thread; the drill raises it)
            self.error = error

    def _one(self, number: int) -> Started:
        case = self._case(number)
        webhook = f"{self._local.url}/webhooks/replicate"
        external_id = self._create(case, webhook)
        return Started(case, external_id, self._register(case, external_id))

    def _create(self, case: Case, webhook: str) -> str:
        """Start a prediction; while the API is away (a fault of the drill) it is asked again."""
        while True:
            try:
                return str(self._standin.create(case.asked, webhook)["id"])
            except StandinError:
                time.sleep(0.5)

    def _case(self, number: int) -> Case:
        webhook = self._draw(WEBHOOKS) or "ok"
        faults: dict[str, str] = {}
        dead = self._draw(DEAD_FAULTS)
        kept = self._draw(KEPT_FAULTS)
        if kept:
            faults[str(self._random.randrange(OUTPUTS_A_JOB))] = kept
        if dead:
            faults[str(self._random.randrange(OUTPUTS_A_JOB))] = dead
        asked: dict[str, Any] = {
            "prompt": f"job {number}",
            "standin": {
                "duration_s": round(self._random.uniform(0.1, 2.0), 2),
                "outputs": OUTPUTS_A_JOB,
                "seed": number % 50,
                "webhook": webhook,
                "output_life_s": 6 * 3600.0,
                "faults": faults,
            },
        }
        is_partial = any(fault in DEAD_FAULTS for fault in faults.values())
        return Case(
            f"job {number}",
            asked,
            state="partial" if is_partial else "succeeded",
            project=f"project {number % PROJECTS}",
            scene=number // PROJECTS % SCENES + 1,
        )

    def _draw(self, chances: dict[str, int]) -> str | None:
        number = self._random.randrange(100)
        for name, chance in chances.items():
            if number < chance:
                return name
            number -= chance
        return None

    def _register(self, case: Case, external_id: str) -> str:
        body = {
            "provider": "replicate",
            "external_id": external_id,
            "owner": "drill",
            "prompt": case.asked["prompt"],
            "project_id": case.project,
            "scene": case.scene,
        }
        while True:
            try:
                answer = self._session.post(f"{self._local.url}/v1/predictions", json=body, timeout=15)
            except requests.RequestException:
                self.refusals += 1
            else:
                if answer.status_code in (200, 201):
                    return str(answer.json()["job_id"])
                if answer.status_code not in (500, 502, 503, 504):
                    raise RuntimeError(
                        f"registering {case.name} was answered {answer.status_code}: {answer.text[:300]}"
                    )
                self.refusals += 1
            time.sleep(0.5)
