"""
Predictions and their dialects: submission, starting, processing and the end; each transition sends webhooks.

The first `submit_times` submissions with the same model and input get the fault that the script's `submit` names, the
same at every provider; later ones succeed; 0: every one gets it.
"""

import base64
import hashlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

import requests

from simulation.provider import webhooks
from simulation.provider.http_types import Response, is_url, send
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import Output, Outputs
from simulation.provider.script import Script
from simulation.provider.webhooks import Scheduler

_INPUT_FIELDS: Final = (
    "image", "image_url", "images", "image_urls", "input_image", "start_image", "mask", "mask_url", "video",
)  # fmt: skip
_INPUT_TIMEOUT_S: Final = 10.0
_REJECTING: Final = frozenset({"busy", "no_credit", "invalid", "500_before"})  # no prediction is created
_HIDING: Final = frozenset({"lost", "500_after", "no_id"})  # the client does not receive the id

T = TypeVar("T")
UrlBuilder = Callable[[Output], str]  # returns an http: URL or a `data:` URI


@dataclass(slots=True)
class Prediction:
    """One prediction; only `Predictions` changes it, under its lock."""

    id: str
    number: int  # in order of creation
    dialect: "Dialect"
    script: Script
    model: str
    input: dict[str, Any]
    webhook: str | None
    created_at: datetime
    version: str = ""
    deployment: str | None = None
    events: tuple[str, ...] | None = None
    is_unseen: bool = False  # no client receives its id, and no API returns it
    status: str = "starting"
    started_at: datetime | None = None
    completed_at: datetime | None = None
    logs: str = ""
    error: str | None = None
    outputs: list[Output] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def visible_outputs(self) -> list[Output]:
        """Return the outputs in its response now: all after success, half of a list before, none otherwise."""
        if self.status == "succeeded":
            return self.outputs[:1] if self.script.shape == "string" else self.outputs
        has_previews = self.script.shape == "list" and self.status in ("processing", "failed")
        return self.outputs[: len(self.outputs) // 2] if has_previews else []

    def is_removed(self, now: datetime) -> bool:
        """Return True if the provider has deleted its data."""
        return self.completed_at is not None and (now - self.completed_at).total_seconds() >= self.script.output_life_s


@dataclass(frozen=True, slots=True)
class Dialect:
    """Ids and JSON of one provider's predictions. {} in a path stands for the index of the output."""

    provider: str
    new_id: Callable[[], str]  # returns a random id
    build_body: Callable[[Prediction, UrlBuilder], dict[str, Any]]  # of a webhook, or of the response
    build_error: Callable[[str, Script], Response]  # of a fault of the submission
    path: str  # of an output in the body
    paths: Mapping[str, str] = field(default_factory=dict)  # the same by the script's shape, where it differs
    events: tuple[str, ...] = ("completed",)  # that have webhooks
    default_events: tuple[str, ...] = ("completed",)  # sent without a filter
    is_known_by_body: bool = False  # its webhooks have no id: moorage identifies them by their digest


class Predictions:
    """All predictions, oldest first."""

    def __init__(self, outputs: Outputs, sender: webhooks.Sender, scheduler: Scheduler, ledger: Ledger) -> None:
        self._outputs, self._sender, self._scheduler, self._ledger = outputs, sender, scheduler, ledger
        self.files: Final = outputs.files  # names in the folder of pictures
        self._all: dict[str, Prediction] = {}
        self._submissions: Counter[str] = Counter()  # with a fault, by model and input
        self._lock = threading.RLock()

    def submit(
        self,
        dialect: Dialect,
        model: str,
        input_: dict[str, Any],
        script: Script,
        build_response: Callable[[Prediction], Response],  # of a healthy provider; may wait for the prediction
        webhook: str | None = None,
        **fields: Any,  # further fields of the prediction
    ) -> Response:
        """Accept a submission, or fail it as its script requires, and record it."""
        fault, prediction = self._select_fault(dialect.provider, model, input_, script), None
        if fault in _REJECTING:
            response = dialect.build_error(fault, script)
        else:
            prediction = self._create(
                dialect, script, input_, model=model, webhook=None if fault == "not_echoed" else webhook,
                is_unseen=fault in _HIDING and not dialect.events, **fields,
            )  # fmt: skip
            response = build_response(prediction)
        if fault == "lost":
            response = replace(response, is_dropped=True)
        elif fault == "500_after":
            response = dialect.build_error(fault, script)
        elif fault == "no_id":
            response = Response(response.status, {"status": "accepted"})
        self._ledger.add(
            "submission", provider=dialect.provider, model=model, webhook=webhook, fault=fault,
            prediction=prediction and prediction.id, http_status=None if response.is_dropped else response.status,
        )  # fmt: skip
        return replace(response, delay_s=script.submit_s)

    def _select_fault(self, provider: str, model: str, input_: dict[str, Any], script: Script) -> str:
        if script.submit == "ok" or not script.submit_times:
            return script.submit
        identity = json.dumps([provider, model, input_], sort_keys=True)
        with self._lock:
            self._submissions[identity] += 1
            return script.submit if self._submissions[identity] <= script.submit_times else "ok"

    def _create(self, dialect: Dialect, script: Script, input_: dict[str, Any], **fields: Any) -> Prediction:
        """Create a prediction and schedule its start. `fields`: model, webhook and others of `Prediction`."""
        with self._lock:
            prediction = Prediction(
                id=dialect.new_id(), number=len(self._all), dialect=dialect, script=script, input=input_,
                created_at=datetime.now(UTC), **fields,
            )  # fmt: skip
            self._all[prediction.id] = prediction
        prompt, webhook = input_.get("prompt"), prediction.webhook
        self._ledger.add(
            "prediction", prediction=prediction.id, provider=dialect.provider, model=prediction.model,
            webhook=webhook, key=parse_qs(urlsplit(webhook or "").query).get("key", [None])[0],
            prompt=prompt[:200] if isinstance(prompt, str) else None, status=script.status,
        )  # fmt: skip
        if script.status == "aborted":
            self._scheduler.run_after(script.duration_s, self._end, prediction)
        else:
            self._scheduler.run_after(script.duration_s * 0.2, self._start, prediction)
        return prediction

    def find(self, provider: str, prediction_id: str) -> Prediction | None:
        with self._lock:
            prediction = self._all.get(prediction_id)
        return prediction if prediction and prediction.dialect.provider == provider else None

    def read(self, prediction: Prediction, reader: Callable[[Prediction, UrlBuilder], T]) -> T:
        """Return the result of `reader`, called while nothing changes the prediction."""
        with self._lock:
            return reader(prediction, self._url_builder(prediction))

    def renew_urls(self, prediction: Prediction) -> None:
        """Renew the URLs of outputs with a renewable fault; called for each poll."""
        with self._lock:
            for output in prediction.visible_outputs:
                self._outputs.renew_url(output)

    def cancel(self, prediction: Prediction) -> None:
        """Cancel a running prediction; one that has ended stays as it is."""
        self._end(prediction, "canceled")

    def succeed(self, prediction_id: str) -> bool:
        """End a prediction that has its outputs with success; return False if there is none of this id."""
        prediction = self._all.get(prediction_id)
        if prediction is None or not prediction.outputs:
            return False
        self._end(prediction, "succeeded")
        return True

    def list_newest_first(self, provider: str, after: datetime | None, before: datetime | None) -> list[Prediction]:
        """Return a provider's predictions created from `after` (inclusive) to `before` (exclusive)."""
        with self._lock:
            created = [p for p in reversed(self._all.values()) if p.dialect.provider == provider]
        created = [p for p in created if after is None or p.created_at >= after]
        return [p for p in created if before is None or p.created_at < before]

    def _start(self, prediction: Prediction) -> None:
        with self._lock:
            if prediction.status != "starting":
                return
            prediction.status, prediction.started_at = "processing", datetime.now(UTC)
            prediction.logs = "Using seed: 196619188014358660\n"
            self._send_webhook(prediction, "start")
        self._scheduler.run_after(prediction.script.duration_s * 0.4, self._progress, prediction)

    def _progress(self, prediction: Prediction) -> None:
        script = prediction.script
        path = prediction.dialect.paths.get(script.shape, prediction.dialect.path)
        prompt, has_files = str(prediction.input.get("prompt") or ""), script.shape not in ("text", "null")
        outputs = self._outputs.create(prediction.id, script, path, prompt) if has_files else []
        error = _fetch_inputs(prediction.id, prediction.input, self._ledger)
        with self._lock:
            if prediction.status != "processing":
                return
            prediction.logs += " 50%|#####     | 1/2\n"
            prediction.outputs, prediction.error = outputs, error
            self._send_webhook(prediction, "logs")
            if prediction.visible_outputs:
                self._send_webhook(prediction, "output")
        if script.status != "processing":
            self._scheduler.run_after(script.duration_s * 0.4, self._end, prediction)

    def _end(self, prediction: Prediction, status: str | None = None) -> None:
        with self._lock:
            if prediction.completed_at is not None:
                return
            prediction.status = status or ("failed" if prediction.error else prediction.script.status)
            prediction.completed_at = datetime.now(UTC)
            prediction.logs += "100%|##########| 2/2\n" if prediction.status == "succeeded" else ""
            self._record_outputs(prediction)
            self._send_webhook(prediction, "completed")
        self._ledger.add("ended", prediction=prediction.id, status=prediction.status)
        prediction.ended.set()

    def _record_outputs(self, prediction: Prediction) -> None:
        expected = "preview" if prediction.status != "succeeded" else "unseen" if prediction.is_unseen else None
        for output in prediction.outputs:
            output.expires_at = datetime.now(UTC).timestamp() + prediction.script.output_life_s
        for output in prediction.visible_outputs:
            self._outputs.record(output, is_inline=prediction.script.shape == "data", expected=expected)

    def _send_webhook(self, prediction: Prediction, event: str) -> None:
        """Send the webhook of an event, as the script defines."""
        script, dialect, is_terminal = prediction.script, prediction.dialect, event == "completed"
        is_held_back = event == "start" and script.webhook == "out_of_order"
        if prediction.webhook is None or event not in dialect.events or script.webhook == "missing" or is_held_back:
            return
        if event in (dialect.default_events if prediction.events is None else prediction.events):
            message = self._build_message(prediction, event)
            self._sender.send(message, script.late_s if is_terminal and script.webhook == "late" else 0.0)
            if is_terminal and script.webhook == "double":
                self._sender.send(message, 0.05)
            if is_terminal and script.webhook == "double_new_id":
                self._sender.send(self._build_message(prediction, event), 0.05)
        if is_terminal and script.webhook == "out_of_order" and "start" in dialect.events:
            self._sender.send(self._build_message(prediction, "start", status="processing"), 0.3)

    def _build_message(self, prediction: Prediction, event: str, status: str | None = None) -> webhooks.Message:
        body = prediction.dialect.build_body(prediction, self._url_builder(prediction))
        if status is not None:
            body |= {"status": status, "output": None, "completed_at": None, "metrics": {}}
        data = json.dumps(body).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        webhook_id = digest if prediction.dialect.is_known_by_body else f"msg_{secrets.token_hex(13)}"
        is_terminal = event == "completed"
        signatures = {"bad_signature_only": "wrong", "bad_signature_first": "wrong_first" if is_terminal else "right"}
        return webhooks.Message(
            webhook_id=webhook_id, prediction_id=prediction.id, url=prediction.webhook or "",
            provider=prediction.dialect.provider, event=event, status=status or prediction.status,
            body=data, signature=signatures.get(prediction.script.webhook, "right"),
            life_s=prediction.script.webhook_life_s if is_terminal else 0.0,
        )  # fmt: skip

    def _url_builder(self, prediction: Prediction) -> UrlBuilder:
        return self._outputs.build_data_uri if prediction.script.shape == "data" else self._outputs.build_url


def _fetch_inputs(prediction_id: str, input_: Mapping[str, Any], ledger: Ledger) -> str | None:
    """Record each input file, downloaded if it is a URL; return the error that must fail the prediction."""
    values = [(name, input_.get(name)) for name in _INPUT_FIELDS]
    items = [(name, item) for name, value in values for item in (value if isinstance(value, list) else [value])]
    for name, url in items:
        is_inline = isinstance(url, str) and url.startswith("data:;base64,")
        if not isinstance(url, str) or not (is_inline or is_url(url)):
            continue
        status, data = (200, base64.b64decode(url[13:])) if is_inline else _download(url)
        digest = hashlib.sha256(data).hexdigest()
        ledger.add("input", prediction=prediction_id, name=name, status=status, sha256=digest, bytes=len(data))
        if status != 200 or not data:
            return f"input.{name} could not be fetched: {status or 'no response'}"
    return None


def _download(url: str) -> tuple[int | None, bytes]:
    """Return status and body; (None, b"") without a response."""
    try:
        response = send("GET", url, _INPUT_TIMEOUT_S)
    except requests.RequestException:
        return None, b""
    return response.status_code, response.content
