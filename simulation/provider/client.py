"""The stand-in as seen by those who start it: a process with a few calls."""

import base64
import http.client
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from simulation.provider import keys

_ROOT: Final = Path(__file__).resolve().parents[2]
_OFFERED: Final = ("standin/pictures", "standin/text-to-video", "standin/image-to-video")  # others are made to fail
_START_S: Final = 60.0
_STOP_S: Final = 5.0


class StandinError(Exception):
    """The stand-in did not start, or refused a request; the message says why."""


class Standin:
    """
    A stand-in process: `with Standin().start(folder) as standin: standin.create({"standin": {"outputs": 3}}, url)`.

    Args:
        token, secret: what its clients must send and what it signs with; made when not given.
        port: 0 takes a free one.
        pictures: a folder of pictures and videos to serve instead of made ones.
    """

    def __init__(
        self, *, token: str | None = None, secret: str | None = None, port: int = 0, pictures: Path | None = None
    ) -> None:
        self.token: Final = token or f"r8_{secrets.token_hex(18)}"
        self.secret: Final = secret or "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.port = port
        self._pictures = pictures
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Return ADDRESS:PORT, as MOORAGE_EGRESS_ALLOW wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Return the base URL, without /v1."""
        return f"http://{self.address}"

    @property
    def pid(self) -> int | None:
        """Return the id of the running process."""
        return self._process.pid if self._process else None

    def environment(self) -> dict[str, str]:
        """Return the settings with which moorage reaches this stand-in as its Replicate, its fal and its OpenAI."""
        return {
            "REPLICATE_API_URL": self.url,
            "REPLICATE_API_TOKEN": self.token,
            "REPLICATE_WEBHOOK_SECRET": self.secret,
            "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
            "REPLICATE_MODELS": ",".join(_OFFERED),
            "FAL_QUEUE_URL": f"{self.url}/fal",
            "MOORAGE_DEV_FAL_JWKS_URL": f"{self.url}/fal/.well-known/jwks.json",
            "FAL_KEY": keys.fal(self.token),
            "FAL_USER_ID": keys.FAL_USER,
            "FAL_OUTPUT_HOSTS": "127.0.0.1",
            "FAL_MODELS": ",".join(_OFFERED),
            "OPENAI_API_URL": f"{self.url}/openai",
            "OPENAI_API_KEY": keys.openai(self.token),
            "OPENAI_OUTPUT_HOSTS": "127.0.0.1",
            "MOORAGE_EGRESS_ALLOW": self.address,
        }

    def start(self, folder: Path) -> "Standin":
        """
        Start the process and return self once it answers; `folder` gets its port, its ledger and its log.

        Raises:
            StandinError: it ended at once, or did not answer in time.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        port_file, log = folder / "standin.port", folder / "standin.log"
        port_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "simulation.provider", "--port", str(self.port), "--port-file", str(port_file)]
        command += ["--token", self.token, "--secret", self.secret, "--ledger", str(folder / "standin.ledger.jsonl")]
        if self._pictures:
            command += ["--pictures", str(self._pictures.resolve())]
        with log.open("ab") as sink:
            self._process = subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        self.port = self._wait(self._process, port_file, log)
        return self

    def stop(self) -> None:
        """End the process; stopping one that is not running does nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> "Standin":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create(
        self, asked: dict[str, Any], webhook: str | None = None, events: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Return a new prediction; `asked` is its input, with the script under "standin" (see `faults`)."""
        body: dict[str, Any] = {"version": "5c7d5dc6dd8bf75c1acaa8565735e798", "input": asked}
        if webhook is not None:
            body["webhook"] = webhook
        if events is not None:
            body["webhook_events_filter"] = list(events)
        return self._ask("POST", "/v1/predictions", body)

    def get(self, prediction_id: str) -> dict[str, Any]:
        """Return a prediction as the API shows it now."""
        return self._ask("GET", f"/v1/predictions/{prediction_id}")

    def cancel(self, prediction_id: str) -> dict[str, Any]:
        """Return a prediction after asking for its cancellation."""
        return self._ask("POST", f"/v1/predictions/{prediction_id}/cancel", {})

    def made(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the ledger's lines of what was really made, those with these fields: provider, model, key, prompt."""
        lines = self.ledger()["lines"]
        found = (line for line in lines if line["kind"] == "prediction")
        return [line for line in found if all(line[name] == value for name, value in fields.items())]

    def ledger(self) -> dict[str, Any]:
        """Return what the stand-in did: `summary` (see `ledger.summarise`) and `lines`."""
        return self._ask("GET", "/standin/ledger")

    def outage(self, seconds: float, *, outputs: bool = False) -> None:
        """Have the API answer 503 for a while, the outputs too if asked; 0 ends it."""
        self._ask("POST", "/standin/outage", {"seconds": seconds, "outputs": outputs})

    def silence(self, seconds: float) -> None:
        """Have webhooks that fall due for a while never be sent."""
        self._ask("POST", "/standin/silence", {"seconds": seconds})

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            read: dict[str, Any] = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status >= 400:
            raise StandinError(f"{method} {path}: {answer.status} {read.get('detail', '')}")
        return read

    def _wait(self, process: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if port_file.exists():
                return int(port_file.read_text())
            if process.poll() is not None:
                self._process = None
                tail = log.read_text(errors="replace")[-2000:]
                raise StandinError(f"the stand-in ended with status {process.returncode}: {tail}")
            time.sleep(0.02)
        self.stop()
        raise StandinError(f"the stand-in did not answer within {_START_S:.0f} s; see {log}")
