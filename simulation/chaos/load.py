"""
The drill's load: an application that starts predictions and registers them, or orders, through any outage.

It sends whatever is not acknowledged again.
"""

import random
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import requests

from simulation.chaos import submission_load
from simulation.chaos.submission_load import Order, Ordered
from simulation.demo.registered import Started
from simulation.demo.registered_cases import Case
from simulation.provider.client import Standin, StandinError
from simulation.stack import Local

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
    """Starts jobs at an even pace in a thread of its own; an application repeats a request until it is taken."""

    def __init__(self, local: Local, standin: Standin, *, jobs: int, seconds: float, seed: int) -> None:
        self._local, self._standin = local, standin
        self._jobs, self._seconds = jobs, seconds
        self._random = random.Random(seed)  # noqa: S311 (repeatable on purpose)
        self._orders = random.Random(f"orders {seed}")  # noqa: S311 (so is this)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {local.secrets['api_token']}"
        self._thread = threading.Thread(target=self._run, name="application", daemon=True)
        self.started: list[Started] = []
        self.ordered: list[Ordered] = []
        self.refusals = 0
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Return whether every job has been started and acknowledged."""
        return not self._thread.is_alive()

    @property
    def jobs(self) -> int:
        """Return how many jobs have been acknowledged."""
        return len(self.started) + len(self.ordered)

    def _run(self) -> None:
        """Start every job at its time: the outermost line of a thread."""
        try:
            begun = time.monotonic()
            for number in range(self._jobs):
                wait = begun + number * self._seconds / self._jobs - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                if self._orders.random() < submission_load.SHARE:
                    self.ordered.append(self._order(number))
                else:
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
                return str(self._standin.create_prediction(case.asked, webhook)["id"])
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
            project=_project(number),
            scene=_scene(number),
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
        return str(self._send("predictions", body, case.name)["job_id"])

    def _order(self, number: int) -> Ordered:
        """Order, and now and then once more, as an application does that missed the answer."""
        order = submission_load.draw(self._orders, number, _project(number), _scene(number))
        return Ordered(order, time.time(), tuple(self._place(order) for _ in range(2 if order.is_repeated else 1)))

    def _place(self, order: Order) -> str:
        return str(self._send("jobs", order.asked(), order.name, {"Idempotency-Key": order.name})["job_id"])

    def _send(
        self, path: str, body: dict[str, Any], name: str, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the good answer to a request, which is sent until there is one."""
        while True:
            try:
                answer = self._session.post(f"{self._local.url}/v1/{path}", json=body, headers=headers, timeout=15)
            except requests.RequestException:
                self.refusals += 1
            else:
                if answer.ok:
                    good: dict[str, Any] = answer.json()
                    return good
                if answer.status_code not in (500, 502, 503, 504):
                    raise RuntimeError(f"{path} for {name} was answered {answer.status_code}: {answer.text[:300]}")
                self.refusals += 1
            time.sleep(0.5)


def _project(number: int) -> str:
    return f"project {number % PROJECTS}"


def _scene(number: int) -> int:
    return number // PROJECTS % SCENES + 1
