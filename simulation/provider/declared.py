"""
Providers of a TOML file, as moorage's MOORAGE_PROVIDERS_FILE declares them, under /declared/NAME.

POST starts a prediction: `{"input", "webhook"}` returns its body; GET /declared/NAME/ID is what `poll.url` must be.
Bodies are built from `fields`, which must be plain paths ("a.b", "a.b[].c"). Webhooks are sent at the end, signed by
hmac over the body, by a token, or not at all.
"""

import hmac
import secrets
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from simulation.provider.http_types import Api, Refused, Request, Response, is_url, not_found, parse_object, problem
from simulation.provider.predictions import Dialect, Prediction, UrlBuilder
from simulation.provider.script import Script, ScriptError, parse_script
from simulation.provider.submissions import Submissions
from simulation.provider.webhooks import Message, Signer

Declaration = Mapping[str, Any]
PATH: Final = Path(__file__).with_name("providers.toml")
BASE_URL: Final = "http://127.0.0.1:8081"  # in that file
_SIGNATURES: Final = ("hmac", "token", "none")
_STATUSES: Final = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "failed",
}


def read_declarations(path: Path) -> dict[str, Declaration]:
    """Return the declarations whose webhooks can be signed here, by name."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: t for name, t in tables.items() if "fields" in t and _webhook(t)["signature"] in _SIGNATURES}


def build_signer(declaration: Declaration, secret: str) -> Signer:
    webhook = _webhook(declaration)

    def build_headers(message: Message, is_valid: bool) -> dict[str, str]:
        key = secret if is_valid else f"not {secret}"
        value = key if webhook["signature"] == "token" else hmac.digest(key.encode(), message.body, "sha256").hex()
        start = f"{webhook['scheme']} " if webhook.get("scheme") else webhook.get("prefix", "")
        return dict.fromkeys(webhook.get("headers", ()), start + value)

    return build_headers


class DeclaredApi(Api):
    def __init__(self, submissions: Submissions, declarations: Mapping[str, Declaration], *, token: str) -> None:
        super().__init__(f"Bearer {token}")
        self._submissions, self._predictions = submissions, submissions.predictions
        self._dialects = {name: _build_dialect(name, declaration) for name, declaration in declarations.items()}

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "POST", [name] if name in self._dialects:
                return self._submit(name, parse_object(request.body))
            case "GET", [name, prediction_id]:
                prediction = self._predictions.find(name, prediction_id)
                if prediction is not None:
                    self._predictions.renew_urls(prediction)
                    return Response(200, self._predictions.read(prediction, prediction.dialect.build_body))
        raise not_found()

    def _submit(self, name: str, body: dict[str, Any]) -> Response:
        dialect, webhook, input_ = self._dialects[name], body.get("webhook"), body.get("input")
        if not isinstance(input_, dict) or not (webhook is None or is_url(webhook)):
            raise Refused(problem(422, "Input validation failed", "input must be an object, webhook a URL"))
        try:
            script = parse_script(input_.get("standin"), self._submissions.files)
        except ScriptError as error:
            raise Refused(problem(422, "Input validation failed", str(error))) from error
        return self._submissions.accept(
            dialect, name, input_, script, webhook=webhook,
            build_response=lambda created: Response(201, self._predictions.read(created, dialect.build_body)),
        )  # fmt: skip


def _webhook(declaration: Declaration) -> dict[str, Any]:
    return {"signature": "none", **declaration.get("webhook", {})}


def _build_dialect(name: str, declaration: Declaration) -> Dialect:
    return Dialect(
        name,
        new_id=lambda: f"{name}-{secrets.token_hex(12)}",
        build_body=partial(_build_body, declaration),
        build_error=_build_error,
        path="outputs[{}]",
        events=("completed",) if "webhook" in declaration else (),
        is_known_by_body=True,
    )


def _build_body(declaration: Declaration, prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    fields, body = declaration["fields"], {"service": declaration.get("label", "")}
    words = declaration["statuses"]
    status = _STATUSES[prediction.status]
    _place(body, fields["id"], prediction.id)
    _place(body, fields["status"], words.get(status, words.get("failed", ["unknown"]))[0])
    _place(body, fields["outputs"], [url(output) for output in prediction.visible_outputs])
    if status == "failed" and "error" in fields:
        _place(body, fields["error"], prediction.error or "out of paint")
    return body


def _place(body: dict[str, Any], path: str, value: Any) -> None:
    """Put a value where a plain path finds it; a list below `name[].rest` has an object for each item."""
    first, mark, rest = path.partition("[].")
    *parents, last = first.removesuffix("[]").split(".")
    for parent in parents:
        body = body.setdefault(parent, {})
    body[last] = [{rest: item} for item in value] if mark else value


def _build_error(fault: str, script: Script) -> Response:
    status = {"busy": 429, "no_credit": 402, "invalid": 422}.get(fault, 500)
    return Response(status, {"detail": fault}, {"Retry-After": f"{script.retry_after_s:g}"} if status == 429 else {})
