"""
Providers of a TOML file, as MOORAGE_PROVIDERS_FILE declares them, and those of moorage's catalog, under /declared/NAME.

POST with `{"input", "webhook"}` starts a prediction and returns its id; GET of what `poll.url` names returns its body.
Bodies are built from `fields`: paths ("a.b", "a.b[].c"), of alternatives the first. Webhooks are sent at the end.
"""

import base64
import hmac
import re
import secrets
import time
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import http_types
from simulation.provider.fal import fal_signer
from simulation.provider.http_types import Api, Refused, Request, Response, is_url, not_found, parse_object, problem
from simulation.provider.predictions import Dialect, Prediction, Predictions, UrlBuilder
from simulation.provider.script import Script, ScriptError, parse_script
from simulation.provider.webhooks import Message, Signer

Declaration = Mapping[str, Any]
PATH: Final = Path(__file__).with_name("providers.toml")
_CATALOG: Final = Path(__file__).parents[2] / "providers" / "catalog"
_ADDRESS: Final = "http://127.0.0.1:8081"  # in that file
# Where the one file of a prediction stands; others have a list.
_SINGLE: Final = {"bfl": "outputs", "gemini": "outputs", "luma": "outputs[1]"}
# The address of its operations is not documented: this is the stand-in's.
_GEMINI_POLL: Final = '[gemini.poll]\nurl = "https://gemini/operations/{+id}"\ntoken = "GEMINI_API_KEY"\n'
_STATUSES: Final = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "failed",
}


def build_file(base_url: str, path: Path = PATH) -> str:
    """Return the declarations in a file and in the catalog, with the addresses of a stand-in."""
    texts = [path.read_text(encoding="utf-8").replace(_ADDRESS, base_url)]
    for entry in sorted(_CATALOG.glob("*.toml")):
        if f"[{entry.stem}]" in texts[0]:  # a filled-in copy
            continue
        text = entry.read_text(encoding="utf-8") + (_GEMINI_POLL if entry.stem == "gemini" else "")
        text = re.sub('"https://[^"]*jwks.json"', f'"{base_url}/fal/.well-known/jwks.json"', text)
        text = re.sub('(?m)^url = "https://[^/]*', f'url = "{base_url}/declared/{entry.stem}', text)
        text = re.sub(r"output_hosts = \[.*\]", 'output_hosts = ["127.0.0.1"]', text)
        texts.append(text.replace("YOUR_USER_ID", http_types.FAL_USER))
    return "\n".join(texts)


def read_declarations(path: Path) -> dict[str, Declaration]:
    """Return the declarations in a file and in the catalog by name."""
    tables = tomllib.loads(build_file("", path))
    return {name: table for name, table in tables.items() if "fields" in table}


def build_environment(token: str, secret: str) -> dict[str, str]:
    """Return the variables that the declarations name."""
    tables = tomllib.loads(build_file("")).values()
    tokens = {table["poll"]["token"]: token for table in tables if "poll" in table}
    return tokens | {name: secret for table in tables for name in _webhook(table).get("secrets", ())}


def build_signer(declaration: Declaration, secret: str, signing_key: Ed25519PrivateKey) -> Signer:
    """Return a signer of the declared family. `signing_key`: of fal's public keys, where the declaration has some."""
    webhook = _webhook(declaration)
    if webhook["signature"] == "digest":
        return fal_signer(signing_key, webhook["headers"])

    def build_headers(message: Message, is_valid: bool) -> dict[str, str]:
        if webhook["signature"] == "standard":
            return _sign_v1a(message, signing_key if is_valid else Ed25519PrivateKey.generate())
        key = secret if is_valid else f"not {secret}"
        value = key if webhook["signature"] == "token" else hmac.digest(key.encode(), message.body, "sha256").hex()
        start = f"{webhook['scheme']} " if webhook.get("scheme") else webhook.get("prefix", "")
        return dict.fromkeys(webhook.get("headers", ()), start + value)

    return build_headers


def _sign_v1a(message: Message, key: Ed25519PrivateKey) -> dict[str, str]:
    timestamp = str(int(time.time()))
    signature = key.sign(f"{message.webhook_id}.{timestamp}.".encode() + message.body)
    values = message.webhook_id, timestamp, f"v1a,{base64.b64encode(signature).decode()}"
    return dict(zip(("webhook-id", "webhook-timestamp", "webhook-signature"), values, strict=True))


class DeclaredApi(Api):
    """`base_url`: with /declared."""

    def __init__(
        self, predictions: Predictions, declarations: Mapping[str, Declaration], *, token: str, base_url: str
    ) -> None:
        super().__init__(f"Bearer {token}")
        self._predictions, self._base_url = predictions, base_url
        self._dialects = {name: _build_dialect(name, declaration) for name, declaration in declarations.items()}

    def handle(self, request: Request) -> Response:
        match request.method, request.steps:
            case "POST", [name, *model] if name in self._dialects:
                return self._submit(name, parse_object(request.body), model)
            case "GET", [name, *_, last]:
                prediction = self._predictions.find(name, request.query.get("id", [last])[0])
                if prediction is not None:
                    self._predictions.renew_urls(prediction)
                    return Response(200, self._predictions.read(prediction, prediction.dialect.build_body))
        raise not_found()

    def _submit(self, name: str, body: dict[str, Any], model: list[str]) -> Response:
        """Accept what the demo starts, or what moorage submits to a model: the input is the body then."""
        input_, webhook = body.get("input"), body.get("webhook")
        if model:
            webhook = body.pop("webhook_url", None)
            input_ = body
        if not isinstance(input_, dict) or not (webhook is None or is_url(webhook)):
            raise Refused(problem(422, "Input validation failed", "input must be an object, webhook a URL"))
        try:
            script = parse_script(input_.get("standin"), self._predictions.files)
        except ScriptError as error:
            raise Refused(problem(422, "Input validation failed", str(error))) from error
        url = f"{self._base_url}/{name}/v1/get_result?id="
        return self._predictions.submit(
            self._dialects[name], "/".join(model[1:]) or name, input_, script, webhook=webhook,
            build_response=lambda created: Response(201, {"id": created.id, "polling_url": url + created.id}),
        )  # fmt: skip


def _webhook(declaration: Declaration) -> dict[str, Any]:
    return {"signature": "none", **declaration.get("webhook", {})}


def _build_dialect(name: str, declaration: Declaration) -> Dialect:
    return Dialect(
        name,
        new_id=lambda: f"{name}-{secrets.token_hex(12)}",
        build_body=partial(_build_body, name, declaration),
        build_error=_build_error,
        path=_SINGLE.get(name, "outputs[{}]"),
        events=("completed",) if "webhook" in declaration else (),
        is_known_by_body=_webhook(declaration)["signature"] != "standard",
    )


def _build_body(name: str, declaration: Declaration, prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    fields, body = declaration["fields"], {"service": declaration.get("label", "")}
    status, words = _STATUSES[prediction.status], declaration["statuses"]
    urls = [url(output) for output in prediction.visible_outputs]
    _place(body, fields["id"], prediction.id)
    if "(" not in fields["status"]:
        other = "running" if status == "queued" else "failed"
        _place(body, fields["status"], words.get(status, words.get(other, ["unknown"]))[0])
    elif not urls:  # Ideogram has no status: an unsafe image has an empty URL
        urls = [""]
    _place(body, fields["outputs"], urls[0] if urls and name in _SINGLE else urls)
    if status == "failed" and "error" in fields:
        _place(body, fields["error"], prediction.error or "out of paint")
    return body


def _place(body: dict[str, Any], path: str, value: Any) -> None:
    """Put a value where a path finds it; a list below `name[].rest` has an object for each item."""
    path = re.sub(r"\[.+, (\w+)\]", r"\1", path.partition(" || ")[0])  # the last of [video, image]
    first, mark, rest = path.partition("[].")
    *parents, last = first.removesuffix("[]").split(".")
    for parent in parents:
        body = body.setdefault(parent, {})
    body[last] = [{rest: item} for item in value] if mark else value


def _build_error(fault: str, script: Script) -> Response:
    status = {"busy": 429, "no_credit": 402, "invalid": 422}.get(fault, 500)
    return Response(status, {"detail": fault}, {"Retry-After": f"{script.retry_after_s:g}"} if status == 429 else {})
