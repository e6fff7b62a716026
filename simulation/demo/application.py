"""The application of the demo: registers predictions and requests jobs over HTTP, and reads the results."""

import io
import time
from collections.abc import Callable, Iterable
from typing import Final

from PIL import Image

from moorage.transitions import TERMINAL_PREDICTION_STATES
from simulation.api_client import ApiClient, SimulationFailed
from simulation.cases import Body, Case, CaseRun
from simulation.demo.cases import PROJECT, SCENES
from simulation.provider.client import Standin
from worker.local_deployment import LocalDeployment

LATE_SECONDS: Final = 2.0
WAIT_SECONDS: Final = 60.0

# Conditions of the application's actions on a job.
READY: Final[dict[str, Callable[[Body], bool]]] = {
    "cancel": lambda job: any(prediction["state"] == "running" for prediction in job["predictions"]),
    "retry": lambda job: bool(job["state"] == "failed"),
}


class Application:
    """`runs` are the accepted cases, in order."""

    def __init__(self, local: LocalDeployment, standin: Standin) -> None:
        self._client = ApiClient(local, "demo")
        self._standin = standin
        self._webhooks = f"{local.url}/webhooks"
        self.runs: list[CaseRun] = []

    @property
    def requested(self) -> list[CaseRun]:
        return [run for run in self.runs if run.case.chain]

    @property
    def registered(self) -> list[CaseRun]:
        """Return the runs of predictions that the application started, including the one it does not register."""
        return [run for run in self.runs if not run.case.chain]

    def create_project(self) -> None:
        self._client.put_project(PROJECT, {"scenes": [{"id": scene} for scene in SCENES]})

    def get_project(self) -> Body:
        return self._client.get_project(PROJECT)

    def start_predictions(self, cases: Iterable[Case]) -> None:
        """Start predictions and register them, those with "late" registration after their webhooks."""
        for case in cases:
            run = CaseRun(case, external_id=self._create(case))
            self.runs.append(run)
            if case.registration == "at once":
                self._register(run)
        time.sleep(LATE_SECONDS)
        for run in self.registered:
            if run.case.registration == "late":
                self._register(run)

    def _create(self, case: Case) -> str:
        webhook = f"{self._webhooks}/{case.provider}"
        if case.provider != "replicate":
            return self._standin.create_declared(case.provider, case.input or {}, webhook)
        return str(self._standin.create_prediction(case.input or {}, webhook)["id"])

    def request_jobs(self, cases: Iterable[Case]) -> None:
        """Request jobs; one that uses a kept output waits for the last job before it."""
        for case in cases:
            self.runs.append(CaseRun(case, (self._client.create_job(case, self._input_image(case)),)))

    def act(self) -> None:
        """Cancel or retry the jobs of cases with an action, each when it is ready for it."""
        for run in self.requested:
            if run.case.action is not None:
                self._await(run, READY[run.case.action])
                self._client.act_on_job(run.job_ids[0], run.case.action)

    def update_views(self) -> bool:
        """Read the job requests that have not reached their expected state; return True if all have."""
        for run in self.requested:
            if not _is_done(run):
                run.view = self._client.get_job(run.job_ids[0])
        return all(_is_done(run) for run in self.requested)

    def _register(self, run: CaseRun) -> None:
        run.job_ids = (self._client.register(run.case, str(run.external_id)),)

    def _input_image(self, case: Case) -> Body | None:
        if case.source == "upload":
            return {"upload": self._client.upload(_build_photo())}
        if case.source == "kept output":
            job = self._await(self.requested[-1], lambda job: job["render_id"] is not None)
            return {"variant": f"{job['render_id']}/0"}
        return None

    def _await(self, run: CaseRun, is_ready: Callable[[Body], bool]) -> Body:
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            job = self._client.get_job(run.job_ids[0])
            if is_ready(job):
                return job
            time.sleep(0.25)
        raise SimulationFailed(f"{run.case.name!r} was not ready within {WAIT_SECONDS:.0f} s")


def _is_done(run: CaseRun) -> bool:
    """Return True if the job has its expected state and files, and no prediction is in flight."""
    view = run.view
    in_flight = [one for one in view.get("predictions", ()) if one["state"] not in TERMINAL_PREDICTION_STATES]
    return (view.get("state"), len(view.get("variants", ()))) == (run.case.state, run.case.files) and not in_flight


def _build_photo() -> bytes:
    """Return a JPEG with a GPS position, like a phone's."""
    target, exif = io.BytesIO(), Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    Image.linear_gradient("L").convert("RGB").save(target, "JPEG", exif=exif)
    return target.getvalue()
