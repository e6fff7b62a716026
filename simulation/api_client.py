"""The application's client for moorage's API, as one owner of renders."""

import time
from typing import Any

import requests

from moorage.errors import MoorageError
from simulation.cases import Body, Case
from worker.local_deployment import LocalDeployment


class SimulationFailed(MoorageError):
    """The API rejected a request, or a state was not reached in time."""


class ApiClient:
    """
    Sends the application's requests.

    Args:
        retries: repeat a request until it succeeds, through any outage; `retry_count` counts the failures.
    """

    def __init__(self, local: LocalDeployment, owner: str, *, retries: bool = False) -> None:
        self._url, self._owner, self._retries = f"{local.url}/v1", owner, retries
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {local.secrets['api_token']}"
        self.retry_count = 0

    def register(self, case: Case, external_id: str) -> str:
        """Register a prediction and return the job's id."""
        body = {"owner": self._owner, **case.build_registration(external_id)}
        return str(self._request("POST", "/predictions", json=body)["job_id"])

    def create_job(self, case: Case, image: Body | None = None) -> str:
        """Send a job request and return the job's id. `image`: a reference to an input file."""
        body = {"owner": self._owner, **case.build_request(image)}
        headers = {"Idempotency-Key": case.name}
        return str(self._request("POST", "/jobs", json=body, headers=headers)["job_id"])

    def get_job(self, job_id: str) -> Body:
        return self._request("GET", f"/jobs/{job_id}")

    def act_on_job(self, job_id: str, action: str) -> None:
        """Cancel or retry a job."""
        self._request("POST", f"/jobs/{job_id}/{action}")

    def upload(self, data: bytes) -> str:
        return str(self._request("POST", f"/uploads?owner={self._owner}", data=data)["upload_id"])

    def put_project(self, project_id: str, document: Body) -> None:
        self._request("PUT", f"/projects/{project_id}", json={"owner": self._owner, "document": document})

    def get_project(self, project_id: str) -> Body:
        return self._request("GET", f"/projects/{project_id}")

    def _request(self, method: str, path: str, **fields: Any) -> Body:
        while True:
            try:
                response = self._session.request(method, self._url + path, timeout=30, **fields)
            except requests.RequestException as error:
                if not self._retries:
                    raise SimulationFailed(f"{method} {path}: {type(error).__name__}: {error}") from error
            else:
                if response.ok:
                    return dict(response.json())
                if not self._retries or response.status_code not in (500, 502, 503, 504):
                    raise SimulationFailed(f"{method} {path}: {response.status_code} {response.text[:300]}")
            self.retry_count += 1
            time.sleep(0.5)
