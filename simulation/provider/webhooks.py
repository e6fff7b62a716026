"""Webhooks as the providers send them: signed in the provider's scheme; only terminal events are retried."""

import asyncio
import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import requests

from simulation.provider.http_types import send
from simulation.provider.ledger import Ledger

_TIMEOUT_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.5


class Scheduler:
    """Runs calls at their time; calls that are not due at the end of the process are dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(32))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run_after(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        """Run a call on a thread; the loop logs its exception."""
        call = partial(self._loop.run_in_executor, None, function, *args)
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, call)


@dataclass(frozen=True, slots=True)
class Message:
    """One webhook; id and body are the same in all attempts."""

    provider: str
    webhook_id: str
    prediction_id: str
    event: str
    status: str
    url: str
    body: bytes
    signature: str = "right"  # or wrong_first, wrong
    life_s: float = 0.0  # from the first attempt to the last; 0 for events that are never retried


Signer = Callable[[Message, bool], dict[str, str]]  # returns the headers of an attempt; False: signed with a wrong key


def attempt_offsets(life_s: float) -> list[float]:
    """Return the times of attempts in seconds after the first: waits double from 0.5 s, the last is at `life_s`."""
    offsets, wait = [0.0], _FIRST_WAIT_S
    while offsets[-1] + wait < life_s:
        offsets.append(offsets[-1] + wait)
        wait *= 2
    return [*offsets, life_s] if life_s > 0 else offsets


def sign(secret: str, webhook_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature header for `whsec_...`: v1 and HMAC-SHA256 over id.timestamp.body, in base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def standard_signer(secret: str) -> Signer:
    """Return a signer of Standard Webhooks v1, which Replicate uses."""
    wrong_secret = "whsec_" + base64.b64encode(hashlib.sha256(secret.encode()).digest()).decode()

    def build_headers(message: Message, is_valid: bool) -> dict[str, str]:
        timestamp, key = str(int(time.time())), secret if is_valid else wrong_secret
        return {
            "User-Agent": "Replicate-Standin/1",
            "webhook-id": message.webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(key, message.webhook_id, timestamp, message.body),
        }

    return build_headers


class Sender:
    """Sends messages and retries terminal ones until a 2xx response or the end of their life."""

    def __init__(self, signers: Mapping[str, Signer], scheduler: Scheduler, ledger: Ledger) -> None:
        self._signers, self._scheduler, self._ledger = signers, scheduler, ledger

    def send(self, message: Message, delay_s: float = 0.0) -> None:
        self._scheduler.run_after(delay_s, self._attempt, message, 1, time.monotonic() + delay_s)

    def _attempt(self, message: Message, attempt: int, first: float) -> None:
        is_valid = message.signature == "right" or (message.signature == "wrong_first" and attempt > 1)
        http_status, error = self._post(message, is_valid)
        self._ledger.add(
            "webhook", provider=message.provider, prediction=message.prediction_id, webhook_id=message.webhook_id,
            event=message.event, status=message.status, attempt=attempt, signed=is_valid, http_status=http_status,
            error=error,
        )  # fmt: skip
        offsets = attempt_offsets(message.life_s)
        if (http_status is None or not 200 <= http_status < 300) and attempt < len(offsets):
            wait = max(0.0, first + offsets[attempt] - time.monotonic())
            self._scheduler.run_after(wait, self._attempt, message, attempt + 1, first)

    def _post(self, message: Message, is_valid: bool) -> tuple[int | None, str | None]:
        headers = {"Content-Type": "application/json", **self._signers[message.provider](message, is_valid)}
        try:
            return send("POST", message.url, _TIMEOUT_S, data=message.body, headers=headers).status_code, None
        except requests.RequestException as error:
            return None, f"{type(error).__name__}: {error}"
