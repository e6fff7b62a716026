"""An application that has things generated, over HTTP alone: how tests order, watch and read."""

import itertools
import uuid
from typing import Any

import requests

from tests.acceptance.retry_503 import patient
from tests.acceptance.world import World, until

MODELS = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}
_SEEDS = itertools.count(1000)  # other pictures and other orders each time: the stand-in counts faults of equal ones


def entry(provider: str = "replicate", *, model: str | None = None, seconds: float = 120.0, **script: Any) -> Any:
    """Return an entry of a chain whose run follows a script (see the stand-in's faults)."""
    given = {"duration_s": 0.3, "outputs": 1, "formats": ["png"], "seed": next(_SEEDS), **script}
    asked = {"prompt": "a boat at its mooring", "standin": given}
    return {"provider": provider, "model": model or MODELS[provider], "input": asked, "seconds": seconds}


class Caller:
    """Whoever holds a token: the application, or one owner's browser."""

    def __init__(self, world: World, token: str, owner: str) -> None:
        self.world, self.token, self.owner = world, token, owner

    def ask(self, method: str, path: str, **sent: Any) -> requests.Response:
        """Return the answer to one request under /v1."""
        headers = {"Authorization": f"Bearer {self.token}", **sent.pop("headers", {})}
        url = f"{self.world.local.url}/v1{path}"
        return patient(lambda: requests.request(method, url, headers=headers, timeout=30, **sent))

    def get(self, path: str) -> Any:
        """Return what a good answer holds."""
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def order(self, *chain: Any, **fields: Any) -> str:
        """Return the id of a new job."""
        answer = self.ask("POST", "/jobs", json={"owner": self.owner, "chain": list(chain), **fields})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    def await_state(self, job_id: str, *states: str, seconds: float = 90.0) -> Any:
        """Return the job as soon as it stands in one of the states."""

        def look() -> Any:
            job = self.get(f"/jobs/{job_id}")
            return job if job["state"] in states else None

        return until(look, f"job {job_id} is {' or '.join(states)}", seconds=seconds)

    def await_end(self, job_id: str, seconds: float = 90.0) -> Any:
        """Return the job as soon as it has ended."""
        return self.await_state(job_id, "succeeded", "partial", "failed", "cancelled", seconds=seconds)


def application(world: World) -> Caller:
    """Return the application, ordering for an owner nobody else in these tests orders for."""
    return Caller(world, world.local.secrets["api_token"], f"owner-{uuid.uuid4().hex[:8]}")


def owner(world: World) -> Caller:
    """Return a new owner's browser, with the token that its application gave it."""
    shop = application(world)
    answer = shop.ask("POST", "/owner-tokens", json={"owner": shop.owner, "scopes": ["jobs", "upload", "delete"]})
    assert answer.status_code == 201, answer.text
    return Caller(world, answer.json()["token"], shop.owner)


def tries(job: Any) -> list[tuple[str, str]]:
    """Return provider and state of each prediction in a job's history."""
    return [(one["provider"], one["state"]) for one in job["predictions"]]
