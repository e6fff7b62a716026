"""
OpenAI's Images API under /openai, without HTTP: synchronous, with the pictures in the answer.

The models gpt-image-* answer with base64; dall-e-*, and any other name, with URLs unless `response_format` is b64_json.
The script's `duration_s` is how long the answer takes; `webhook` and its kin mean nothing here.
"""

import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from simulation.provider import faults, models
from simulation.provider.exchange import Answer, Refused, Request, is_authorized, json_object
from simulation.provider.prediction import Dialect, Prediction, Url
from simulation.provider.predictions import Predictions
from simulation.provider.submissions import Order, Submissions

_LONGEST_S: Final = 600.0
_UNSEEN: Final = ("lost", "500_after", "no_id")


class OpenAIDialect(Dialect):
    """Sends nothing: the answer to the order is all there is."""

    provider = "openai"
    events = ()
    paths: ClassVar[Mapping[str, str]] = {"data": "data[{}].b64_json"}
    path = "data[{}].url"

    def new_id(self) -> str:
        """Return what the header x-request-id holds."""
        return f"req_{secrets.token_hex(16)}"

    def told(self, prediction: Prediction, url: Url) -> dict[str, Any]:
        """Return the body of a good answer."""
        is_inline = prediction.plan.shape == "data"
        named = [url(output) for output in prediction.shown]
        data = [{"b64_json": one.partition(",")[2]} if is_inline else {"url": one} for one in named]
        return {"created": int(prediction.created_at.timestamp()), "data": data}


class OpenAIApi:
    """POST /v1/images/generations and the list of models."""

    def __init__(
        self, predictions: Predictions, submissions: Submissions, files: tuple[str, ...], *, key: str, base_url: str
    ) -> None:
        self._predictions = predictions
        self._submissions = submissions
        self._files = files
        self._key = key
        self._dialect = OpenAIDialect(base_url)

    def admit(self, request: Request) -> None:
        """Raise Refused without the right key."""
        if not is_authorized(request, f"Bearer {self._key}"):
            raise Refused(_error(401, "Incorrect API key provided.", code="invalid_api_key"))

    def answer(self, request: Request) -> Answer:
        """Return the answer to one request; raises Refused."""
        match request.method, request.steps:
            case "POST", ["v1", "images", "generations"]:
                return self._generate(json_object(request.body))
            case "GET", ["v1", "models"]:
                names = ("gpt-image-1", "dall-e-3", "dall-e-2")
                listed = [{"id": name, "object": "model", "created": 0, "owned_by": "standin"} for name in names]
                return Answer(200, {"object": "list", "data": listed})
            case _:
                raise Refused(_error(404, "Unknown request URL.", code="unknown_url"))

    def _generate(self, asked: dict[str, Any]) -> Answer:
        name, prompt = asked.get("model", "dall-e-2"), asked.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise Refused(_error(400, "Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter"))
        count = asked.get("n", 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10:
            raise Refused(_error(400, "Invalid value for 'n': must be from 1 to 10.", "n", "invalid_value"))
        plan = self._plan(str(name), asked)
        order = Order("openai", str(name), asked)

        def make(fault: str) -> tuple[str, Answer]:
            made = self._predictions.create(self._dialect, plan, asked, model=str(name), unseen=fault in _UNSEEN)
            made.ended.wait(_LONGEST_S)
            return made.id, self._end(made)

        return self._submissions.take(order, plan, _refusal, make)

    def _plan(self, name: str, asked: dict[str, Any]) -> faults.Plan:
        inline = name.startswith("gpt-image") or asked.get("response_format") == "b64_json"
        nature = {"formats": ("png",), **models.nature(models.named(name), asked, self._files)}
        nature["shape"] = "data" if inline else "list"
        try:
            return faults.plan(asked.get("standin"), self._files, nature)
        except faults.PlanError as error:
            raise Refused(_error(400, str(error), "standin", "invalid_value")) from error

    def _end(self, prediction: Prediction) -> Answer:
        status = self._predictions.see(prediction, lambda one, _: one.status)
        headers = {"x-request-id": prediction.id}
        if status == "succeeded":
            return Answer(200, self._predictions.see(prediction, self._dialect.told), headers)
        if status == "failed":
            told = _error(400, "Your request was rejected by the safety system.", code="moderation_blocked")
            return Answer(400, told.body, headers)
        return Answer(500, _refusal("500_after", prediction.plan).body, headers)


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> Answer:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return Answer(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def _refusal(fault: str, plan: faults.Plan) -> Answer:
    match fault:
        case "busy":
            told = _error(429, "Rate limit reached for images per minute.", code="rate_limit_exceeded")
            wait = f"{plan.retry_after_s:g}"
            return Answer(429, told.body, {"retry-after": wait, "retry-after-ms": f"{plan.retry_after_s * 1000:.0f}"})
        case "no_credit":
            message = "You exceeded your current quota, please check your plan and billing details."
            kind = "insufficient_quota"
            return Answer(429, {"error": {"message": message, "type": kind, "param": None, "code": kind}})
        case "invalid":
            return _error(400, "Invalid value: '1x1'.", "size", "invalid_value")
        case _:
            return _error(500, "The server had an error while processing your request.")
