"""The application that orders in the demo: over HTTP, as one owner of renders, with nothing but the API."""

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import requests
from PIL import Image

from moorage.transitions import TERMINAL_PREDICTION_STATES
from simulation.demo.registered import DemoFailed
from simulation.demo.submitted_cases import FILM, SCENES, Order, Steer
from simulation.stack import Local

OWNER = "demo"
WAIT_SECONDS: Final = 60.0

Shown = dict[str, Any]
# When a job is as far as what is to be done with it asks for.
READY: Final[dict[Steer, Callable[[Shown], bool]]] = {
    "cancel": lambda shown: any(prediction["state"] == "running" for prediction in shown["predictions"]),
    "retry": lambda shown: bool(shown["state"] == "failed"),
}


@dataclass(slots=True)
class Ordered:
    """An order with the job it became, as the API shows it; empty until it has ended."""

    order: Order
    job_id: str
    shown: Shown = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Return whether the job stands as it must in the end, and nothing of it is at work at a provider."""
        shown = (self.shown.get("state"), len(self.shown.get("variants", ())))
        at_work = [one for one in self.shown.get("predictions", ()) if one["state"] not in TERMINAL_PREDICTION_STATES]
        return shown == (self.order.state, self.order.publishes) and not at_work


class Shop:
    """Orders, uploads, writes a project, and reads what became of it."""

    def __init__(self, local: Local) -> None:
        self._url = f"{local.url}/v1"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {local.secrets['api_token']}"
        self.placed: list[Ordered] = []

    def write_film(self) -> None:
        """Make a project with scenes that wait for pictures."""
        document = {"scenes": [{"id": scene} for scene in SCENES]}
        self._ask("PUT", f"/projects/{FILM}", json={"owner": OWNER, "document": document})

    def film(self) -> dict[str, Any]:
        """Return the project as it stands."""
        return self._ask("GET", f"/projects/{FILM}")

    def place(self, orders: Iterable[Order]) -> None:
        """Order; one that starts from a kept picture waits for the job before it."""
        for order in orders:
            image = self._image(order)
            chain = [{**entry, "input": {**entry["input"], **image}} for entry in order.chain]
            asked = {"owner": OWNER, "chain": chain, **order.fields}
            self.placed.append(Ordered(order, str(self._ask("POST", "/jobs", json=asked)["job_id"])))

    def steer(self) -> None:
        """Cancel and retry what is to be, each once its job is so far."""
        for one in self.placed:
            if one.order.steer is not None:
                self._await(one, READY[one.order.steer])
                self._ask("POST", f"/jobs/{one.job_id}/{one.order.steer}")

    def look(self) -> bool:
        """Read the jobs that are not done; returns whether all are."""
        for one in self.placed:
            if not one.is_done:
                one.shown = self._ask("GET", f"/jobs/{one.job_id}")
        return all(one.is_done for one in self.placed)

    def _image(self, order: Order) -> dict[str, Any]:
        if order.source == "an upload":
            upload = self._ask("POST", f"/uploads?owner={OWNER}", data=_photo())
            return {"image": {"upload": upload["upload_id"]}}
        if order.source == "a kept picture":
            shown = self._await(self.placed[-1], lambda shown: shown["render_id"] is not None)
            return {"image": {"variant": f"{shown['render_id']}/0"}}
        return {}

    def _await(self, ordered: Ordered, is_ready: Callable[[Shown], bool]) -> Shown:
        """Return a job once it is so far."""
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            shown = self._ask("GET", f"/jobs/{ordered.job_id}")
            if is_ready(shown):
                return shown
            time.sleep(0.25)
        raise DemoFailed(f"{ordered.order.name!r} did not come so far within {WAIT_SECONDS:.0f} s")

    def _ask(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        answer = self._session.request(method, self._url + path, timeout=30, **sent)
        if not answer.ok:
            raise DemoFailed(f"{method} {path} was answered {answer.status_code}: {answer.text[:300]}")
        read: dict[str, Any] = answer.json()
        return read


def _photo() -> bytes:
    """Return a JPEG that says where it was taken, as a phone's does."""
    made, exif = io.BytesIO(), Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    Image.linear_gradient("L").convert("RGB").save(made, "JPEG", exif=exif)
    return made.getvalue()
