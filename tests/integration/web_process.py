"""A real API with a real PostgreSQL, beside the receiver or alone."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.integration import receiver_process as rp

BASE = "https://cdn.example/files"  # what stands before a key in addresses
TOKEN = "the-token-of-the-tests-0123456789abcdef"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Answer(NamedTuple):
    """A response of the API; `fields` is its JSON."""

    status: int
    headers: dict[str, str]
    fields: dict[str, Any]


class Front(rp.Receiver):
    """The API and the receiver in one process."""

    app = "web.asgi:app"

    def get(self, path: str) -> Answer:
        """Send a GET with the token."""
        return self.ask("GET", path, headers=BEARER)

    def register(self, **fields: Any) -> Answer:
        """Register a prediction with the token."""
        body = {"provider": "replicate", "owner": "ada", **fields}
        return self.post_json(json.dumps(body).encode())

    def post_json(self, body: bytes, **headers: str) -> Answer:
        """Send any bytes as a registration."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**BEARER, "content-type": "application/json", **named}
        return self.ask("POST", "/v1/predictions", body, sent)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """Send one request and parse the JSON of the response."""
        status, answered, content = self.call(method, path, body, headers)
        return Answer(status, answered, json.loads(content) if content else {})


class Alone(Front):
    """The API without the receiver."""

    app = "web.app:app"

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.call("GET", "/v1/jobs/0")[0] in (401, 503)
        return False


@contextlib.contextmanager
def running(url: str, kind: type[Front] = Front, **settings: str) -> Iterator[Front]:
    """Run an API until the block ends; it is ready at its start."""
    with tempfile.TemporaryFile() as log:
        front = kind(log, url, **{"MOORAGE_API_TOKEN": TOKEN, **settings})
        try:
            front.await_ready()
            yield front
        finally:
            if front.process.poll() is None:
                front.stop()
