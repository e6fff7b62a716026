"""The files of predictions: made when a prediction ends, found by the token in their URL, gone when their life ends."""

import base64
import hashlib
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from simulation.provider import faults, pictures
from simulation.provider.ledger import Ledger, stamp

TOO_LARGE_BYTES: Final = 60_000_000
_PAGE: Final = pictures.File(
    b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1><p>Please try again.</p>\n",
    "text/html; charset=utf-8",
)


@dataclass(slots=True)
class Output:
    """One file; its bytes are made anew from `kind` and `seed` whenever they are asked for."""

    prediction: str
    index: int
    path: str  # where it stands in the answer: output, output[2], output.images[0].url
    kind: str
    seed: int
    fault: str | None
    size: tuple[int, int] | None = None  # of a made picture, in pixels
    sha256: str | None = None  # of what is served; None when that has no end or is padded
    bytes: int | None = None
    ends_at: float = float("inf")  # epoch seconds; known once the prediction has ended
    token: str = field(default_factory=lambda: secrets.token_hex(20))
    asked: int = 0  # requests answered so far
    refused: bool = False  # this URL answered 404 once, so that a poll may name a fresh one

    @property
    def nature(self) -> faults.Fault:
        """Return the fault's description, faults.NONE without one."""
        return faults.FAULTS[self.fault] if self.fault else faults.NONE

    @property
    def expired(self) -> bool:
        """Return whether its life is over."""
        return time.time() >= self.ends_at


class Outputs:
    """All outputs by token."""

    def __init__(self, base_url: str, trap_url: str, folder: Path | None, ledger: Ledger) -> None:
        self._base_url = base_url
        self._trap_url = trap_url
        self._folder = folder
        self._ledger = ledger
        self._by_token: dict[str, Output] = {}
        self._lock = threading.Lock()
        self.files: Final = pictures.names(folder) if folder else ()

    def make(self, prediction: str, plan: faults.Plan, path: str) -> list[Output]:
        """Return the outputs of a prediction, findable from now on; `path` has {} for the index of each."""
        made = [self._one(prediction, plan, index, path.format(index)) for index in range(plan.outputs)]
        with self._lock:
            self._by_token.update({output.token: output for output in made})
        return made

    def _one(self, prediction: str, plan: faults.Plan, index: int, path: str) -> Output:
        seed = plan.seed if plan.seed is not None else int.from_bytes(hashlib.sha256(prediction.encode()).digest()[:4])
        kind = plan.formats[index % len(plan.formats)]
        content = plan.fault(index).content
        if content == "bomb" or (pictures.ending(kind) == "gif" and content in ("half", "noise")):
            kind = "png"  # half a GIF, or one with noise in it, may still decode to fewer frames
        size = (plan.width_px, plan.height_px) if plan.width_px and plan.height_px else None
        output = Output(prediction, index, path, kind, seed + index, plan.faults.get(index), size)
        if output.nature.acts[-1].how not in ("padded", "endless"):
            data = self.file(output).data
            output.sha256, output.bytes = hashlib.sha256(data).hexdigest(), len(data)
        return output

    def find(self, token: str) -> Output | None:
        """Return the output behind a URL, None when it is unknown or was replaced by a fresh one."""
        with self._lock:
            return self._by_token.get(token)

    def count(self, output: Output) -> int:
        """Return how many requests for the output there were before this one."""
        with self._lock:
            output.asked += 1
            return output.asked - 1

    def refuse(self, output: Output) -> None:
        """Remember that the output's URL answered 404."""
        with self._lock:
            output.refused = True

    def renew(self, output: Output) -> None:
        """Give the output a fresh URL without a fault, where its fault says so and the old one was tried."""
        with self._lock:
            if not (output.nature.renewed and output.refused):
                return
            del self._by_token[output.token]
            output.token, output.fault, output.refused = secrets.token_hex(20), None, False
            self._by_token[output.token] = output
        self._ledger.add("renewed", prediction=output.prediction, path=output.path, url=self.url(output))

    def file(self, output: Output) -> pictures.File:
        """Return the bytes as they are served, with the type they are served under."""
        whole = self._whole(output)
        match output.nature.content:
            case "half":
                data = whole.data[: len(whole.data) // 2]
            case "noise":
                data = whole.data[:16] + pictures.noise(len(whole.data) - 16, output.seed)
            case "page":
                return _PAGE
            case "empty":
                data = b""
            case _:
                return whole
        return pictures.File(data, whole.content_type)

    def url(self, output: Output) -> str:
        """Return the address the API names for an output."""
        name = f"{output.index}.{pictures.ending(output.kind)}"
        base = {"trap": self._trap_url, "foreign": "http://files.example.invalid"}.get(
            output.nature.source, self._base_url
        )
        return f"{base}/out/{output.token}/{name}"

    def data_uri(self, output: Output) -> str:
        """Return an output as a `data:` URI."""
        file = self.file(output)
        return f"data:{file.content_type};base64,{base64.b64encode(file.data).decode()}"

    def record(self, output: Output, *, inline: bool, fate: str | None) -> None:
        """Write into the ledger what the output is and what must come of it: `fate`, None for what its fault says."""
        nature = output.nature
        self._ledger.add(
            "output",
            prediction=output.prediction,
            path=output.path,
            url=None if inline else self.url(output),
            sha256=output.sha256,
            bytes=output.bytes,
            content_type=_PAGE.content_type if nature.content == "page" else pictures.content_type(output.kind),
            fault=output.fault,
            expected=fate or nature.expected,
            why=nature.why,
            dies_at=_moment(output.ends_at),
        )

    def _whole(self, output: Output) -> pictures.File:
        if output.nature.content == "bomb":
            return pictures.bomb()
        if self._folder and output.kind in self.files:
            return pictures.read(self._folder / output.kind)
        return pictures.made(output.kind, output.seed, output.size)


def _moment(epoch_s: float) -> str | None:
    return None if epoch_s == float("inf") else stamp(datetime.fromtimestamp(epoch_s, UTC))
