"""Starts the demo's predictions at the stand-in and registers them over HTTP, as an application would."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import requests

from db.connection import Connection, many
from moorage.errors import MoorageError
from simulation.demo.registered_cases import Case
from simulation.provider.client import Standin
from simulation.stack import Local

LATE_SECONDS: Final = 2.0


class DemoFailed(MoorageError):
    """The demo could not do what it shows."""


@dataclass(frozen=True, slots=True)
class Started:
    """A case with the prediction and job it became."""

    case: Case
    external_id: str
    job_id: str | None


class Application:
    """The application of the demo: two calls a job."""

    def __init__(self, local: Local, standin: Standin) -> None:
        self._local = local
        self._standin = standin
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {local.secrets['api_token']}"

    def start(self, cases: Sequence[Case]) -> list[Started]:
        """Start every case; those registered late are registered after their webhooks came."""
        webhook = f"{self._local.url}/webhooks/replicate"
        started: list[Started] = []
        late: list[tuple[Case, str]] = []
        for case in cases:
            external_id = self._standin.create_prediction(case.asked, webhook)["id"]
            if case.registered == "late":
                late.append((case, external_id))
            else:
                job_id = self._register(case, external_id) if case.registered == "at once" else None
                started.append(Started(case, external_id, job_id))
        if late:
            threading.Event().wait(LATE_SECONDS)
        return started + [Started(case, external_id, self._register(case, external_id)) for case, external_id in late]

    def _register(self, case: Case, external_id: str) -> str:
        body: dict[str, Any] = {
            "provider": "replicate",
            "external_id": external_id,
            "owner": "demo",
            "kind": "image",
            "prompt": case.asked["prompt"],
            "policy": case.partial,
        }
        if case.project is not None:
            body |= {"project_id": case.project, "scene": case.scene}
        answer = self._session.post(f"{self._local.url}/v1/predictions", json=body, timeout=10)
        if answer.status_code not in (200, 201):
            raise DemoFailed(f"registering {case.name!r} was answered {answer.status_code}: {answer.text[:300]}")
        return str(answer.json()["job_id"])


PROGRESS = """
SELECT (SELECT count(*) FROM deliveries) AS accepted,
       (SELECT count(*) FROM deliveries WHERE ended_at IS NULL) AS deliveries,
       (SELECT count(*) FROM jobs WHERE settled_at IS NULL) AS jobs,
       (SELECT count(*) FROM jobs) AS jobs_all,
       (SELECT count(*) FROM outputs WHERE state = 'kept') AS kept,
       (SELECT count(*) FROM outputs WHERE ended_at IS NULL) AS waiting,
       (SELECT count(*) FROM outputs WHERE state = 'dead') AS dead,
       (SELECT count(*) FROM notices WHERE ended_at IS NULL) AS notices,
       (SELECT count(*) FROM dead_letters WHERE state = 'open') AS dead_letters
"""


def progress(conn: Connection) -> dict[str, int]:
    """Return the counts that the live line shows."""
    return dict(many(conn, PROGRESS)[0])


def is_quiet(conn: Connection, jobs: int) -> bool:
    """Return whether every job has ended and nothing waits any more."""
    now = progress(conn)
    return now["jobs_all"] >= jobs and not any(now[what] for what in ("jobs", "deliveries", "waiting", "notices"))


def await_quiet(
    conn: Connection, jobs: int, tell: Callable[[dict[str, int]], None], is_done: Callable[[], bool], seconds: float
) -> bool:
    """Wait until all is quiet and `is_done` says so too, telling the progress; False when it takes too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        tell(progress(conn))
        if is_quiet(conn, jobs) and is_done():
            return True
        time.sleep(0.25)
    return False
