"""
fal.ai's queue under /fal: submit, status, result, cancel and the public keys of its webhooks.

Any owner and application is accepted. The payload has the files in `images`, with shape "string" in `image`, from a
video model in `video`; shape "data", or `sync_mode` in the input, returns them as `data:` URIs.
"""

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import fal_webhooks, models
from simulation.provider.http_types import Api, Refused, Request, Response, is_url, parse_json_object
from simulation.provider.prediction import Prediction
from simulation.provider.script import Script, ScriptError, parse_script
from simulation.provider.submissions import Submissions

_QUEUE: Final = {"starting": "IN_QUEUE", "processing": "IN_PROGRESS"}
_KEYS: Final = [".well-known", "jwks.json"]
_NAMESPACES: Final = ("workflows", "comfy")


class FalApi(Api):
    """`base_url`: of the queue, with /fal."""

    def __init__(self, submissions: Submissions, *, key: str, base_url: str, signing_key: Ed25519PrivateKey) -> None:
        super().__init__(f"Key {key}")
        self._submissions, self._predictions = submissions, submissions.predictions
        self._base_url, self._signing_key = base_url, signing_key

    def authenticate(self, request: Request) -> None:
        if request.steps != _KEYS:
            super().authenticate(request)

    def _unauthorized(self) -> Response:
        detail = "Cannot access application. Authentication is required to access this application."
        return Response(401, {"detail": detail})

    def handle(self, request: Request) -> Response:
        if (request.method, request.steps) == ("GET", _KEYS):
            return Response(200, fal_webhooks.build_key_set(self._signing_key))
        if request.method == "POST":
            return self._submit(request)
        depth = _app_depth(request.steps)
        app, rest = "/".join(request.steps[:depth]), request.steps[depth:]
        match request.method, rest:
            case "GET", ["requests", request_id, "status"]:
                return self._status(self._find(app, request_id))
            case "GET", ["requests", request_id]:
                return self._result(self._find(app, request_id))
            case "PUT", ["requests", request_id, "cancel"]:
                return self._cancel(app, request_id)
            case _:
                raise _refused(405, "Method Not Allowed")

    def _submit(self, request: Request) -> Response:
        name, input_ = "/".join(request.steps), parse_json_object(request.body)
        webhook = request.query.get("fal_webhook", [None])[0]
        if len(request.steps) < 2:
            raise _refused(404, "Application not found")
        if webhook is not None and not is_url(webhook):
            raise _refused(422, "fal_webhook must be an http:// or https:// URL")
        return self._submissions.accept(
            fal_webhooks.DIALECT, name, input_, self._parse_script(name, input_), build_error=_build_error,
            webhook=webhook, build_response=self._build_accepted,
        )  # fmt: skip

    def _build_accepted(self, prediction: Prediction) -> Response:
        return Response(200, {**self._urls(prediction), "status": "IN_QUEUE", "queue_position": 0})

    def _parse_script(self, name: str, input_: dict[str, Any]) -> Script:
        model, files = models.find_by_name(name), self._submissions.files
        defaults = {"webhook_life_s": 7200.0, **models.script_defaults(model, input_, files)}
        if model and model.kind == "video":
            defaults["shape"] = "video"
        elif input_.get("sync_mode") is True:
            defaults["shape"] = "data"
        try:
            return parse_script(input_.get("standin"), files, defaults)
        except ScriptError as error:
            raise _refused(422, str(error)) from error

    def _find(self, app: str, request_id: str) -> Prediction:
        prediction = self._predictions.find("fal", request_id)
        if prediction is None or _app_name(prediction) != app:
            raise _refused(404, "Request not found")
        return prediction

    def _status(self, prediction: Prediction) -> Response:
        status = self._predictions.read(prediction, lambda one, _: one.status)
        body = {**self._urls(prediction), "status": _QUEUE.get(status, "COMPLETED")}
        if status == "starting":
            return Response(202, {**body, "queue_position": 0})
        if status == "processing":
            return Response(202, {**body, "logs": None})
        body |= {"logs": None, "metrics": {"inference_time": prediction.script.duration_s}}
        if status != "succeeded":
            body |= {"error": fal_webhooks.ERRORS[status], "error_type": "runtime_error"}
        return Response(200, body)

    def _result(self, prediction: Prediction) -> Response:
        self._predictions.renew_urls(prediction)
        status, body = self._predictions.read(prediction, fal_webhooks.build_result)
        if status in _QUEUE:
            raise _refused(400, "Request is still in progress")
        if status == "succeeded":
            return Response(200, body)
        return Response(422, body, {"X-Fal-Error-Type": "runtime_error"})

    def _cancel(self, app: str, request_id: str) -> Response:
        prediction = self._predictions.find("fal", request_id)
        if prediction is None or _app_name(prediction) != app:
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
