"""
fal.ai's queue under /fal, without HTTP: submit, status, result, cancel and the public keys of its webhooks.

Any owner and application is taken. The files stand in the payload as `images`, as `image` with shape "string", as
`video` from a video model; shape "data", or `sync_mode` in the input, puts `data:` URIs there.
"""

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import fal_webhooks, faults, models
from simulation.provider.exchange import Answer, Refused, Request, is_authorized, is_url, json_object
from simulation.provider.prediction import Prediction
from simulation.provider.predictions import Predictions
from simulation.provider.submissions import Order, Submissions

_QUEUE: Final = {"starting": "IN_QUEUE", "processing": "IN_PROGRESS"}
_KEYS: Final = [".well-known", "jwks.json"]
_NAMESPACES: Final = ("workflows", "comfy")


class FalApi:
    """
    The queue.

    Args:
        key: FAL_KEY of its one user.
        base_url: of the queue, with the prefix.
        signing: what webhooks are signed with.
    """

    def __init__(
        self, predictions: Predictions, submissions: Submissions, files: tuple[str, ...], *,
        key: str, base_url: str, signing: Ed25519PrivateKey,
    ) -> None:  # fmt: skip
        self._predictions = predictions
        self._submissions = submissions
        self._files = files
        self._key = key
        self._base_url = base_url
        self._signing = signing
        self._dialect = fal_webhooks.FalDialect(base_url)

    def admit(self, request: Request) -> None:
        """Raise Refused without the right key."""
        if request.steps != _KEYS and not is_authorized(request, f"Key {self._key}"):
            raise _refused(401, "Cannot access application. Authentication is required to access this application.")

    def answer(self, request: Request) -> Answer:
        """Return the answer to one request; raises Refused."""
        if (request.method, request.steps) == ("GET", _KEYS):
            return Answer(200, fal_webhooks.key_set(self._signing))
        if request.method == "POST":
            return self._submit(request)
        wanted = 3 if request.steps[:1] and request.steps[0] in _NAMESPACES else 2
        app, rest = "/".join(request.steps[:wanted]), request.steps[wanted:]
        match request.method, rest:
            case "GET", ["requests", one, "status"]:
                return self._status(self._find(app, one))
            case "GET", ["requests", one]:
                return self._result(self._find(app, one))
            case "PUT", ["requests", one, "cancel"]:
                return self._cancel(app, one)
            case _:
                raise _refused(405, "Method Not Allowed")

    def _submit(self, request: Request) -> Answer:
        name, asked = "/".join(request.steps), json_object(request.body)
        hook = request.query.get("fal_webhook", [None])[0]
        if len(request.steps) < 2:
            raise _refused(404, "Application not found")
        if hook is not None and not is_url(hook):
            raise _refused(422, "fal_webhook must be an http:// or https:// URL")
        plan = self._plan(name, asked)
        order = Order("fal", name, asked, hook)

        def make(fault: str) -> tuple[str, Answer]:
            given = None if fault == "not_echoed" else hook
            made = self._predictions.create(self._dialect, plan, asked, model=name, webhook=given)
            return made.id, Answer(200, {**self._about(made), "status": "IN_QUEUE", "queue_position": 0})

        return self._submissions.take(order, plan, _refusal, make)

    def _plan(self, name: str, asked: dict[str, Any]) -> faults.Plan:
        model = models.named(name)
        nature = {"webhook_life_s": 7200.0, **models.nature(model, asked, self._files)}
        if model and model.kind == "video":
            nature["shape"] = "video"
        elif asked.get("sync_mode") is True:
            nature["shape"] = "data"
        try:
            return faults.plan(asked.get("standin"), self._files, nature)
        except faults.PlanError as error:
            raise _refused(422, str(error)) from error

    def _find(self, app: str, request_id: str) -> Prediction:
        found = self._predictions.find("fal", request_id)
        if found is None or _app(found) != app:
            raise _refused(404, "Request not found")
        return found

    def _status(self, prediction: Prediction) -> Answer:
        status = self._predictions.see(prediction, lambda one, _: one.status)
        queued = _QUEUE.get(status)
        about = {**self._about(prediction), "status": queued or "COMPLETED"}
        if queued:
            return Answer(202, {**about, "queue_position": 0} if queued == "IN_QUEUE" else {**about, "logs": None})
        ended = {**about, "logs": None, "metrics": {"inference_time": prediction.plan.duration_s}}
        if status != "succeeded":
            ended |= {"error": fal_webhooks.ERRORS[status], "error_type": "runtime_error"}
        return Answer(200, ended)

    def _result(self, prediction: Prediction) -> Answer:
        self._predictions.renew(prediction)
        status, told = self._predictions.see(prediction, fal_webhooks.result)
        if status in _QUEUE:
            raise _refused(400, "Request is still in progress")
        return Answer(200, told) if status == "succeeded" else Answer(422, told, {"X-Fal-Error-Type": "runtime_error"})

    def _cancel(self, app: str, request_id: str) -> Answer:
        found = self._predictions.find("fal", request_id)
        if found is None or _app(found) != app:
            return Answer(404, {"status": "NOT_FOUND"})
        if self._predictions.see(found, lambda one, _: one.completed_at) is not None:
            return Answer(400, {"status": "ALREADY_COMPLETED"})
        self._predictions.cancel(found)
        return Answer(202, {"status": "CANCELLATION_REQUESTED"})

    def _about(self, prediction: Prediction) -> dict[str, Any]:
        own = f"{self._base_url}/{_app(prediction)}/requests/{prediction.id}"
        return {
            "request_id": prediction.id,
            "gateway_request_id": prediction.id,
            "response_url": own,
            "status_url": f"{own}/status",
            "cancel_url": f"{own}/cancel",
        }


def _app(prediction: Prediction) -> str:
    """Return the part of the model's name that requests are asked for under."""
    steps = prediction.model.split("/")
    return "/".join(steps[: 3 if steps[0] in _NAMESPACES else 2])


def _refused(status: int, detail: str) -> Refused:
    return Refused(Answer(status, {"detail": detail}))


def _refusal(fault: str, plan: faults.Plan) -> Answer:
    match fault:
        case "busy":
            return Answer(429, {"detail": "Too many requests"}, {"Retry-After": f"{plan.retry_after_s:g}"})
        case "no_credit":
            told = "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."
            return Answer(403, {"detail": told})
        case "invalid":
            wrong = {"loc": ["body", "prompt"], "msg": "field required", "type": "value_error.missing"}
            return Answer(422, {"detail": [wrong]})
        case _:
            return Answer(500, {"detail": "Internal Server Error"})
