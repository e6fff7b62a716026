"""The application that orders in the demo: over HTTP, as one owner of renders, with nothing but the API."""

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import requests
from PIL import Image

from worker.demo.drive import DemoFailed
from worker.demo.orders import FILM, SCENES, Order
from worker.local import Local

OWNER = "demo"
PICTURE_SECONDS = 60.0


@dataclass(slots=True)
class Ordered:
    """An order with the job it became, as the API shows it; empty until it has ended."""

    order: Order
    job_id: str
    shown: dict[str, Any] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Return whether the job stands as it must in the end."""
        shown = (self.shown.get("state"), len(self.shown.get("variants", ())))
        return shown == (self.order.state, self.order.publishes)


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
            return {"image": {"variant": f"{self._await_picture(self.placed[-1])}/0"}}
        return {}

    def _await_picture(self, ordered: Ordered) -> str:
        """Return the render that a job has become."""
        until = time.monotonic() + PICTURE_SECONDS
        while time.monotonic() < until:
            render_id = self._ask("GET", f"/jobs/{ordered.job_id}")["render_id"]
            if render_id:
                return str(render_id)
            time.sleep(0.25)
        raise DemoFailed(f"{ordered.order.name!r} published nothing within {PICTURE_SECONDS:.0f} s")

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
