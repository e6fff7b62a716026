"""
fal.ai's queue under /fal: submit, status, result, cancel, its webhooks and their public keys.

Any owner and application is accepted. The payload has the files in `images`, with shape "string" in `image`, from a
video model in `video`; shape "data", or `sync_mode` in the input, returns them as `data:` URIs. Webhooks are signed
with Ed25519; the public keys are a JSON Web Key Set.
"""

import base64
import hashlib
import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import models, pictures
from simulation.provider.http_types import FAL_USER, Api, Refused, Request, Response, is_url, parse_object
from simulation.provider.outputs import Output
from simulation.provider.predictions import Dialect, Prediction, Predictions, UrlBuilder
from simulation.provider.script import Script, ScriptError, parse_script
from simulation.provider.webhooks import Message, Signer

_QUEUE: Final = {"starting": "IN_QUEUE", "processing": "IN_PROGRESS"}
_KEYS: Final = [".well-known", "jwks.json"]
_HEADERS: Final = [f"X-Fal-Webhook-{part}" for part in ("Request-Id", "User-Id", "Timestamp", "Signature")]
_NAMESPACES: Final = ("workflows", "comfy")
_ERRORS: Final = {"failed": "Invalid status code: 422", "canceled": "Request was cancelled", "aborted": "Timed out"}


def _build_webhook(prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    """Return the result in an envelope."""
    status, payload = _build_result(prediction, url)
    return {
        "error": _ERRORS.get(status),
        "gateway_request_id": prediction.id,
        "payload": payload,
        "request_id": prediction.id,
        "status": "OK" if status == "succeeded" else "ERROR",
    }


def _build_error(fault: str, script: Script) -> Response:
    match fault:
        case "busy":
            return Response(429, {"detail": "Too many requests"}, {"Retry-After": f"{script.retry_after_s:g}"})
        case "no_credit":
            detail = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."
            return Response(403, {"detail": detail})
        case "invalid":
            missing = {"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}
            return Response(422, {"detail": [missing]})
        case _:
            return Response(500, {"detail": "Internal Server Error"})


# Sends one webhook, at the end.
_DIALECT: Final = Dialect(
    "fal", lambda: str(uuid.uuid4()), _build_webhook, _build_error, "payload.images[{}].url",
    paths={"string": "payload.image.url", "video": "payload.video.url"},
)  # fmt: skip


def _build_result(prediction: Prediction, url: UrlBuilder) -> tuple[str, dict[str, Any]]:
    """Return the status of a request and the body of its result."""
    if prediction.status == "succeeded":
        return prediction.status, _build_payload(prediction, url)
    message = prediction.error or "CUDA out of memory"
    return prediction.status, {"detail": [{"loc": ["body"], "msg": message, "type": "runtime_error"}]}


def _build_payload(prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    shape = prediction.script.shape
    if shape == "text":
        return {"output": "A harbour at dawn."}
    files = [_build_file(output, url(output)) for output in prediction.visible_outputs]
    is_single = shape in ("string", "video")
    name = {"string": "image", "video": "video"}.get(shape, "images")
    named = {} if is_single and not files else {name: files[0] if is_single else files}
    return {**named, "seed": 196619188014358660, "has_nsfw_concepts": [False] * len(files), "timings": {}}


def _build_file(output: Output, url: str) -> dict[str, Any]:
    return {
        "url": url,
        "content_type": pictures.content_type(output.format),
        "file_name": f"{output.index}.{pictures.extension(output.format)}",
        "file_size": output.bytes,
        "width": output.size_px[0] if output.size_px else None,
        "height": output.size_px[1] if output.size_px else None,
    }


def fal_signer(signing_key: Ed25519PrivateKey, names: Sequence[str] = _HEADERS) -> Signer:
    """Return a signer in fal's scheme: Ed25519 over request id, user id, time and digest of the body."""
    wrong_key = Ed25519PrivateKey.generate()

    def build_headers(message: Message, is_valid: bool) -> dict[str, str]:
        timestamp = str(int(time.time()))
        parts = [message.prediction_id, FAL_USER, timestamp, hashlib.sha256(message.body).hexdigest()]
        signature = (signing_key if is_valid else wrong_key).sign("\n".join(parts).encode())
        values = zip(names, (*parts[:3], signature.hex()), strict=True)
        return {"User-Agent": "Fal-Standin/1", **dict(values)}

    return build_headers


def derive_signing_key(secret: str) -> Ed25519PrivateKey:
    """Return the key of a stand-in's secret: the same one after a restart."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"fal {secret}".encode()).digest())


def _build_key_set(signing_key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the public keys: a retired one, then the current one."""
    keys = [Ed25519PrivateKey.from_private_bytes(bytes(32)), signing_key]
    encoded = [base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode() for key in keys]
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": public} for public in encoded]}


def _build_openapi(steps: list[str]) -> dict[str, Any]:
    """Return the OpenAPI document of a model: its input, and the payload of its results."""
    name = "/".join(steps)
    model = models.find_by_name(name)
    if model is None:
        raise _refused(404, "Model not found")
    text, whole = {"type": "string"}, models.openapi(model.fields, model.required, is_list=True)
    file = {"type": "object", "properties": {"url": text, "content_type": text}}
    made = {"images": {"type": "array", "items": file}, "image": file, "video": file, "prompt": text}

    def body(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    post = {"requestBody": body({"$ref": "#/components/schemas/Input"})}
    get = {"responses": {"200": body({"type": "object", "properties": made})}}
    result = f"/{'/'.join(steps[: _app_depth(steps)])}/requests/{{request_id}}"
    return whole | {"paths": {f"/{name}": {"post": post}, result: {"get": get}}}


class FalApi(Api):
    """`base_url`: of the queue, with /fal."""

    def __init__(self, predictions: Predictions, *, key: str, base_url: str, signing_key: Ed25519PrivateKey) -> None:
        super().__init__(f"Key {key}")
        self._predictions, self._base_url, self._signing_key = predictions, base_url, signing_key

    def authenticate(self, request: Request) -> None:
        if request.steps != _KEYS and request.steps[:1] != ["openapi"]:
            super().authenticate(request)

    def _unauthorized(self) -> Response:
        detail = "Cannot access application. Authentication is required to access this application."
        return Response(401, {"detail": detail})

    def handle(self, request: Request) -> Response:
        if (request.method, request.steps) == ("GET", _KEYS):
            return Response(200, _build_key_set(self._signing_key))
        if request.steps[:1] == ["openapi"]:
            return Response(200, _build_openapi(request.steps[1:]))
        if request.method == "POST":
            return self._submit(request)
        depth = _app_depth(request.steps)
        app, rest = "/".join(request.steps[:depth]), request.steps[depth:]
        match request.method, rest:
            case "GET", ["requests", request_id, *view] if view in ([], ["status"]):
                prediction = self._find(app, request_id)
                if prediction is None:
                    raise _refused(404, "Request not found")
                return self._status(prediction) if view else self._result(prediction)
            case "PUT", ["requests", request_id, "cancel"]:
                return self._cancel(app, request_id)
            case _:
                raise _refused(405, "Method Not Allowed")

    def _submit(self, request: Request) -> Response:
        name, input_ = "/".join(request.steps), parse_object(request.body)
        webhook = request.query.get("fal_webhook", [None])[0]
        if len(request.steps) < 2:
            raise _refused(404, "Application not found")
        if webhook is not None and not is_url(webhook):
            raise _refused(422, "fal_webhook must be an http:// or https:// URL")
        script = self._parse_script(name, input_)
        return self._predictions.submit(_DIALECT, name, input_, script, self._build_accepted, webhook)

    def _build_accepted(self, prediction: Prediction) -> Response:
        return Response(200, {**self._urls(prediction), "status": "IN_QUEUE", "queue_position": 0})

    def _parse_script(self, name: str, input_: dict[str, Any]) -> Script:
        model, files = models.find_by_name(name), self._predictions.files
        defaults = {"webhook_life_s": 7200.0, **models.script_defaults(model, input_, files)}
        if model and model.kind == "video":
            defaults["shape"] = "video"
        elif input_.get("sync_mode") is True:
            defaults["shape"] = "data"
        try:
            return parse_script(input_.get("standin"), files, defaults)
        except ScriptError as error:
            raise _refused(422, str(error)) from error

    def _find(self, app: str, request_id: str) -> Prediction | None:
        prediction = self._predictions.find("fal", request_id)
        return prediction if prediction and _app_name(prediction) == app else None

    def _status(self, prediction: Prediction) -> Response:
        status = self._predictions.read(prediction, lambda one, _: one.status)
        body = {**self._urls(prediction), "status": _QUEUE.get(status, "COMPLETED")}
        if status == "starting":
            return Response(202, {**body, "queue_position": 0})
        if status == "processing":
            return Response(202, {**body, "logs": None})
        body |= {"logs": None, "metrics": {"inference_time": prediction.script.duration_s}}
        if status != "succeeded":
            body |= {"error": _ERRORS[status], "error_type": "runtime_error"}
        return Response(200, body)

    def _result(self, prediction: Prediction) -> Response:
        self._predictions.renew_urls(prediction)
        status, body = self._predictions.read(prediction, _build_result)
        if status in _QUEUE:
            raise _refused(400, "Request is still in progress")
        if status == "succeeded":
            return Response(200, body)
        return Response(422, body, {"X-Fal-Error-Type": "runtime_error"})

    def _cancel(self, app: str, request_id: str) -> Response:
        prediction = self._find(app, request_id)
        if prediction is None:
            return Response(404, {"status": "NOT_FOUND"})
        if self._predictions.read(prediction, lambda one, _: one.completed_at) is not None:
            return Response(400, {"status": "ALREADY_COMPLETED"})
        self._predictions.cancel(prediction)
        return Response(202, {"status": "CANCELLATION_REQUESTED"})

    def _urls(self, prediction: Prediction) -> dict[str, Any]:
        own = f"{self._base_url}/{_app_name(prediction)}/requests/{prediction.id}"
        return {
            "request_id": prediction.id,
            "gateway_request_id": prediction.id,
            "response_url": own,
            "status_url": f"{own}/status",
            "cancel_url": f"{own}/cancel",
        }


def _app_depth(steps: list[str]) -> int:
    """Return the number of path steps that name the application, without its sub-path."""
    return 3 if steps[:1] and steps[0] in _NAMESPACES else 2


def _app_name(prediction: Prediction) -> str:
    steps = prediction.model.split("/")
    return "/".join(steps[: _app_depth(steps)])


def _refused(status: int, detail: str) -> Refused:
    return Refused(Response(status, {"detail": detail}))
