"""
OpenAI's Images API under /openai, generations and edits: synchronous, with the pictures in the response.

The models gpt-image-* return base64; dall-e-*, and any other name, return URLs unless `response_format` is b64_json.
The script's `duration_s` is the time until the response; its webhook keys have no effect.
"""

import base64
import email
import json
import secrets
from typing import Any, Final, cast

from simulation.provider import models
from simulation.provider.http_types import Api, Refused, Request, Response, parse_object
from simulation.provider.predictions import Dialect, Prediction, Predictions, UrlBuilder
from simulation.provider.script import Script, ScriptError, parse_script

_MAX_WAIT_S: Final = 600.0


def _build_body(prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    urls = [url(output) for output in prediction.visible_outputs]
    is_inline = prediction.script.shape == "data"
    data = [{"b64_json": one.partition(",")[2]} if is_inline else {"url": one} for one in urls]
    return {"created": int(prediction.created_at.timestamp()), "data": data}


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return Response(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def _build_error(fault: str, script: Script) -> Response:
    match fault:
        case "busy":
            error = _error(429, "Rate limit reached for images per minute.", code="rate_limit_exceeded")
            seconds = script.retry_after_s
            return Response(429, error.body, {"retry-after": f"{seconds:g}", "retry-after-ms": f"{seconds * 1000:.0f}"})
        case "no_credit":
            message = "You exceeded your current quota, please check your plan and billing details."
            code = "insufficient_quota"
            return Response(429, {"error": {"message": message, "type": code, "param": None, "code": code}})
        case "invalid":
            return _error(400, "Invalid value: '1x1'.", "size", "invalid_value")
        case _:
            return _error(500, "The server had an error while processing your request.")


# Sends no webhook. The id is the value of the header x-request-id.
_DIALECT: Final = Dialect(
    "openai", lambda: f"req_{secrets.token_hex(16)}", _build_body, _build_error, "data[{}].url",
    paths={"data": "data[{}].b64_json"}, events=(),
)  # fmt: skip


def _parse_form(request: Request) -> dict[str, Any]:
    """Return the fields of an edit: files as lists of `data:` URIs, numbers and objects from JSON."""
    message = email.message_from_bytes(f"Content-Type: {request.content_type}\r\n\r\n".encode() + request.body)
    fields: dict[str, Any] = {}
    for part in message.walk():
        name, data = part.get_param("name", header="content-disposition"), cast("bytes", part.get_payload(decode=True))
        if part.get_filename():
            uri = f"data:;base64,{base64.b64encode(data).decode()}"
            fields.setdefault(str(name).removesuffix("[]"), []).append(uri)
        elif name:
            fields[str(name)] = json.loads(data) if name in ("n", "standin") else data.decode()
    if not fields.get("image"):
        raise Refused(_error(400, "Missing required parameter: 'image'.", "image", "missing_required_parameter"))
    return fields


class OpenAIApi(Api):
    def __init__(self, predictions: Predictions, *, key: str) -> None:
        super().__init__(f"Bearer {key}")
        self._predictions = predictions

    def _unauthorized(self) -> Response:
        return _error(401, "Incorrect API key provided.", code="invalid_api_key")

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "POST", ["v1", "images", "generations"]:
                return self._generate(parse_object(request.body))
            case "POST", ["v1", "images", "edits"]:
                return self._generate(_parse_form(request))
            case _:
                raise Refused(_error(404, "Unknown request URL.", code="unknown_url"))

    def _generate(self, input_: dict[str, Any]) -> Response:
        name, prompt, count = str(input_.get("model", "dall-e-2")), input_.get("prompt"), input_.get("n", 1)
        if not isinstance(prompt, str) or not prompt:
            raise Refused(_error(400, "Missing required parameter: 'prompt'.", "prompt", "missing_required_parameter"))
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 10:
            raise Refused(_error(400, "Invalid value for 'n': must be from 1 to 10.", "n", "invalid_value"))
        script = self._parse_script(name, input_)
        return self._predictions.submit(_DIALECT, name, input_, script, self._await_response)

    def _parse_script(self, name: str, input_: dict[str, Any]) -> Script:
        is_inline = name.startswith("gpt-image") or input_.get("response_format") == "b64_json"
        defaults = models.script_defaults(models.find_by_name(name), input_, self._predictions.files)
        defaults = {"formats": ("png",), **defaults, "shape": "data" if is_inline else "list"}
        try:
            return parse_script(input_.get("standin"), self._predictions.files, defaults)
        except ScriptError as error:
            raise Refused(_error(400, str(error), "standin", "invalid_value")) from error

    def _await_response(self, prediction: Prediction) -> Response:
        prediction.ended.wait(_MAX_WAIT_S)
        status = self._predictions.read(prediction, lambda one, _: one.status)
        headers = {"x-request-id": prediction.id}
        if status == "succeeded":
            return Response(200, self._predictions.read(prediction, _build_body), headers)
        if status == "failed":
            error = _error(400, "Your request was rejected by the safety system.", code="moderation_blocked")
            return Response(400, error.body, headers)
        return Response(500, _build_error("500_after", prediction.script).body, headers)
