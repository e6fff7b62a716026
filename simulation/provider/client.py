"""Starts and controls a stand-in process."""

import base64
import hashlib
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from embedded import ports
from embedded.process import Process
from moorage import settings
from simulation.provider import declared
from simulation.provider.http_types import FAL_USER, fal_key, openai_key, send
from worker.local_deployment import ROOT, load_secrets

_OFFERED: Final = ("standin/pictures", "standin/text-to-video", "standin/image-to-video")  # the others fail on purpose


class StandinError(Exception):
    """The stand-in rejected a request."""


class Standin:
    """
    A stand-in process.

    Args:
        token, secret: the API token and the secret of its webhooks; random by default.
        port: 0 selects a free one.
        pictures: a folder of pictures and videos to serve instead of generated ones.
    """

    def __init__(
        self, *, token: str | None = None, secret: str | None = None, port: int = 0, pictures: Path | None = None
    ) -> None:
        self.token: Final = token or f"r8_{secrets.token_hex(18)}"
        self.secret: Final = secret or "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        self.port = port
        self._pictures = pictures
        self._process: Process | None = None
        self._providers_file: Path | None = None

    @property
    def address(self) -> str:
        """Return HOST:PORT, the format of MOORAGE_EGRESS_ALLOW."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def environment(self) -> dict[str, str]:
        """Return the settings that make this stand-in moorage's built-in and declared providers."""
        return {
            "REPLICATE_API_URL": self.url,
            "REPLICATE_API_TOKEN": self.token,
            "REPLICATE_WEBHOOK_SECRET": self.secret,
            "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
            "REPLICATE_MODELS": ",".join((*_OFFERED, *settings.REPLICATE_MODELS)),
            "FAL_QUEUE_URL": f"{self.url}/fal",
            "MOORAGE_DEV_FAL_JWKS_URL": f"{self.url}/fal/.well-known/jwks.json",
            "FAL_OPENAPI": f"{self.url}/fal/openapi/{{model}}",
            "FAL_KEY": fal_key(self.token),
            "FAL_USER_ID": FAL_USER,
            "FAL_OUTPUT_HOSTS": "127.0.0.1",
            "FAL_MODELS": ",".join((*_OFFERED, *settings.FAL_MODELS)),
            "OPENAI_API_URL": f"{self.url}/openai",
            "OPENAI_API_KEY": openai_key(self.token),
            "OPENAI_OUTPUT_HOSTS": "127.0.0.1",
            "MOORAGE_EGRESS_ALLOW": self.address,
            "MOORAGE_PROVIDERS_FILE": str(self._providers_file or ""),
            **declared.build_environment(self.token, self.secret),
        }

    def start(self, folder: Path) -> Self:
        """
        Start the process and return self when it is ready. Port, ledger and log are written into `folder`.

        Call it from the main thread. Raises ConfigError if it exits.
        """
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        port_file = folder / "standin.port"
        port_file.unlink(missing_ok=True)
        options = {"port": self.port, "port-file": port_file, "token": self.token, "secret": self.secret}
        options |= {"ledger": folder / "standin.ledger.jsonl"}
        if self._pictures:
            options["pictures"] = self._pictures.resolve()
        self._process = Process(
            [sys.executable, "-m", "simulation.provider", *(f"--{name}={value}" for name, value in options.items())],
            env=dict(os.environ),
            cwd=ROOT,
            log_path=folder / "standin.log",
            ready=port_file.exists,
            name="the stand-in",
        )
        self._process.start()
        self.port = int(port_file.read_text())
        self._providers_file = folder / "providers.toml"
        self._providers_file.write_text(declared.build_file(self.url), encoding="utf-8")
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def create_prediction(
        self, input_: dict[str, Any], webhook: str | None = None, events: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Create a prediction of a model without a schema; `input_["standin"]` is its script (see `script.py`)."""
        filter_ = None if events is None else list(events)
        body = {"version": "5c7d5dc6dd8bf75c1acaa8565735e798", "input": input_, "webhook": webhook}
        return self._request("POST", "/v1/predictions", {**body, "webhook_events_filter": filter_})

    def create_declared(self, name: str, input_: dict[str, Any], webhook: str) -> str:
        """Create a prediction of a declared provider and return its id."""
        created = self._request("POST", f"/declared/{name}", {"input": input_, "webhook": webhook})
        return str(created["id"])

    def get_ledger(self) -> dict[str, Any]:
        """Return `summary` (see `ledger.summarise`) and `lines`."""
        return self._request("GET", "/standin/ledger")

    def begin_outage(self, seconds: float, *, outputs: bool = False) -> None:
        """Make the APIs, and optionally the outputs, return 503 for a time; 0 ends it."""
        self._request("POST", "/standin/outage", {"seconds": seconds, "outputs": outputs})

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        response = send(method, self.url + path, 30, json=body, headers=headers)
        parsed: dict[str, Any] = response.json()
        if not response.ok:
            raise StandinError(f"{method} {path}: {response.status_code} {parsed.get('detail', '')}")
        return parsed


def build_standin(folder: Path, pictures: Path | None) -> Standin:
    """Return a stand-in with the credentials of the folder and, if it is free, the port of the last one there."""
    key, port_file = hashlib.sha256(load_secrets(folder)["api_token"].encode()), folder / "standin/standin.port"
    port = ports.prefer(int(port_file.read_text())) if port_file.exists() else ports.reserve(1)[0]
    secret = "whsec_" + base64.b64encode(key.digest()).decode()
    return Standin(token=f"r8_{key.hexdigest()[:36]}", secret=secret, port=port, pictures=pictures)
