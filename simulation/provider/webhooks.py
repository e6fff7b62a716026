"""Webhooks as providers send them: signed in their dialect, tried again for terminal events only."""

import base64
import hashlib
import hmac
import http.client
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from simulation.provider.clock import Clock
from simulation.provider.ledger import Ledger

_TIMEOUT_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Message:
    """
    One webhook: its id and body stay the same over all attempts.

    Args:
        signature: right, wrong_first or wrong.
        life_s: how long after the first attempt the last one is made; 0 for events that are never retried.
    """

    provider: str
    webhook_id: str
    prediction: str
    event: str
    status: str
    url: str
    body: bytes
    signature: str = "right"
    life_s: float = 0.0


Signer = Callable[[Message, bool], dict[str, str]]  # the headers of an attempt; False: signed with a wrong key


def new_id() -> str:
    """Return a fresh webhook-id."""
    return f"msg_{secrets.token_hex(13)}"


def offsets(life_s: float) -> list[float]:
    """Return when attempts are made, in seconds after the first: waits doubled from 0.5 s, the last one at `life_s`."""
    made = [0.0]
    wait = _FIRST_WAIT_S
    while made[-1] + wait < life_s:
        made.append(made[-1] + wait)
        wait *= 2
    return [*made, life_s] if life_s > 0 else made


def sign(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature header for `whsec_...`: v1 and HMAC-SHA256 over id.timestamp.body, in base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def standard_signer(secret: str) -> Signer:
    """Return what signs as Standard Webhooks v1, like Replicate."""
    wrong = "whsec_" + base64.b64encode(hashlib.sha256(secret.encode()).digest()).decode()

    def headers(message: Message, rightly: bool) -> dict[str, str]:
        timestamp = str(int(time.time()))
        return {
            "User-Agent": "Replicate-Standin/1",
            "webhook-id": message.webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(secret if rightly else wrong, message.webhook_id, timestamp, message.body),
        }

    return headers


class Sender:
    """Sends messages, signed by their provider, and tries terminal ones again until a 2xx or the end of their life."""

    def __init__(self, signers: Mapping[str, Signer], clock: Clock, ledger: Ledger) -> None:
        self._signers = signers
        self._clock = clock
        self._ledger = ledger
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def send(self, message: Message, after_s: float = 0.0) -> None:
        """Make the first attempt `after_s` from now."""
        self._clock.after(after_s, self._attempt, message, 1, time.monotonic() + after_s)

    def silence(self, seconds: float) -> None:
        """Drop every attempt that falls due meanwhile, as if no webhook had ever been sent."""
        with self._lock:
            self._silent_until = time.monotonic() + seconds

    def _attempt(self, message: Message, attempt: int, first: float) -> None:
        with self._lock:
            if time.monotonic() < self._silent_until:
                return
        signed = message.signature == "right" or (message.signature == "wrong_first" and attempt > 1)
        answer, error = self._post(message, signed)
        self._ledger.add(
            "webhook",
            provider=message.provider,
            prediction=message.prediction,
            webhook_id=message.webhook_id,
            event=message.event,
            status=message.status,
            attempt=attempt,
            signed=signed,
            answer=answer,
            error=error,
        )
        plan = offsets(message.life_s)
        if (answer is None or not 200 <= answer < 300) and attempt < len(plan):
            wait = max(0.0, first + plan[attempt] - time.monotonic())
            self._clock.after(wait, self._attempt, message, attempt + 1, first)

    def _post(self, message: Message, signed: bool) -> tuple[int | None, str | None]:
        headers = {"Content-Type": "application/json", **self._signers[message.provider](message, signed)}
        parts = urlsplit(message.url)
        connection = _connection(parts)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, message.body, headers)
            return connection.getresponse().status, None  # a redirect is an answer like any other: not followed
        except (OSError, http.client.HTTPException) as error:
            return None, f"{type(error).__name__}: {error}"
        finally:
            connection.close()


def _connection(parts: SplitResult) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
