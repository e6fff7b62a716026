"""
fal.ai: Ed25519 over a digest, with public keys from a JSON Web Key Set; the body contains the result of the request.

Sources: docs.fal.ai (webhooks, queue, request errors), fal-ai/fal (fal_client/client.py), fal-ai/fal-js (queue.ts),
read 2026-11. Webhooks of all fal users are signed with the same keys: FAL_USER_ID restricts them to one's own.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlencode

from moorage.errors import MalformedPayload, ProviderRefused, ProviderUnavailable, SubmitUncertain
from moorage.provider_types import PredictionReport, PredictionStatus, SubmitRequest, SubmitResult
from moorage.settings import Settings
from moorage.text import to_storable
from moorage.urls import HostAllowlist
from providers import endpoints, json_fields, output_files, output_schemas
from providers.base import Provider
from providers.fal_schemas import SchemaSource
from providers.jwks import KeySet
from providers.output_schemas import Declares
from providers.signature_verifiers import DigestVerifier

_HEADERS: Final = tuple(f"x-fal-webhook-{part}" for part in ("request-id", "user-id", "timestamp", "signature"))
_WEBHOOK_STATUSES: Final[dict[str, PredictionStatus]] = {"OK": "succeeded", "ERROR": "failed"}
_QUEUE_STATUSES: Final[dict[str, PredictionStatus]] = {
    "IN_QUEUE": "queued",
    "IN_PROGRESS": "running",
    "COMPLETED": "succeeded",  # also a failure, with an error
}
_NAMESPACES: Final = frozenset({"workflows", "comfy"})
# Instead of a result: possibly the last word of the model or the queue, not of the API (404: the result is gone).
_RESULT_ERRORS: Final = frozenset(range(400, 600)) - {401, 404, 410, 429}
_API_ERRORS: Final = frozenset({402, 403, 405, 408, 425})  # such as of a locked account, unless they name a type
_MALFORMED: Final = (ProviderUnavailable, "fal returned a malformed response")
_COMPLETED_CODE: Final = "ALREADY_COMPLETED"
_NAME_WORDS: Final = re.compile(r"[a-z0-9]+")
_EDIT_WORDS: Final = frozenset({"edit", "kontext", "redux"})


class Fal(Provider):
    """fal.ai's queue, or a compatible server at FAL_QUEUE_URL."""

    name = label = "fal"
    hosts_setting, url_setting, models_setting = "FAL_OUTPUT_HOSTS", "FAL_QUEUE_URL", "FAL_MODELS"
    webhook_setting = "FAL_KEY or FAL_USER_ID"
    submit_setting = "FAL_KEY"
    needs_model = True
    webhook_headers = _HEADERS
    recorded_headers = Provider.recorded_headers | set(_HEADERS[:-1])

    def __init__(self, settings: Settings) -> None:
        hosts = HostAllowlist(settings.fal_output_hosts, settings.egress_allow, setting=self.hosts_setting)
        key_set = KeySet("fal's public keys", settings.constants.fal_jwks_url)
        users, sender = settings.fal_user_id, "fal than FAL_USER_ID"
        verifier = DigestVerifier(key_set, self.webhook_headers, users=users, sender=sender)
        super().__init__(settings, hosts=hosts, verifier=verifier)
        self.key_set: Final = key_set
        self._has_users = bool(settings.fal_user_id)
        self._api_url = settings.fal_queue_url
        self.models = settings.fal_models
        endpoints.validate_models(self.models, _parse_queue_name, self.models_setting)
        self._schemas: Final = SchemaSource(settings.fal_openapi, hosts)
        for url in settings.constants.fal_jwks_url:
            endpoints.require_secure_url(url, hosts, "MOORAGE_DEV_FAL_JWKS_URL")
        if settings.fal_key:
            self._create_clients("Key", settings.fal_key, settings.webhook_max_bytes)

    @property
    def has_secret(self) -> bool:
        """Return True if FAL_KEY or FAL_USER_ID is set: the keys are public."""
        return self.can_poll or self._has_users

    def parse_report(self, body: bytes) -> PredictionReport:
        return self._parse(body, output_schemas.say_nothing)

    def refine_report(self, report: PredictionReport, body: bytes, model: str | None) -> PredictionReport:
        check = self._build_check(report, model)
        return self._parse(body, check) if check else report

    def _parse(self, body: bytes, declares: Declares) -> PredictionReport:
        fields = json_fields.parse_json_object(body)
        raw_status = json_fields.require_text(fields.get("status"), "status")
        status = _WEBHOOK_STATUSES.get(raw_status, "unknown")
        payload = fields.get("payload")
        reason = json_fields.optional_text(fields.get("payload_error"))
        files = self.extract_files(payload if status == "succeeded" else None, "payload", declares)
        return PredictionReport(
            external_id=json_fields.require_id(fields.get("request_id"), "request_id"),
            status=status,
            raw_status=raw_status,
            outputs=files.outputs,
            mentions=files.mentions,
            error=_join_error(fields.get("error"), payload) or reason,
            needs_fetch=status == "succeeded" and payload is None and reason is not None,
        )

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:
        api, request_url = self._require(self._api), self._build_request_url(external_id, model)
        with json_fields.translate_malformed(*_MALFORMED):
            fields = json_fields.parse_json_object(api.request(f"{request_url}/status", statuses=(200, 202))[1])
        raw_status = to_storable(str(fields.get("status")), 100)
        status = _QUEUE_STATUSES.get(raw_status, "unknown")
        error = json_fields.optional_text(fields.get("error"))
        if status != "succeeded" or error:
            return PredictionReport(external_id, "failed" if status == "succeeded" else status, raw_status, error=error)
        code, body, headers = api.request(request_url, statuses=_RESULT_ERRORS | {200})
        if code != 200:
            if error := _find_final_error(code, body, headers):
                return PredictionReport(external_id, "failed", raw_status, error=error)
            raise api.classify_status(code, headers)
        with json_fields.translate_malformed(*_MALFORMED):
            payload = json_fields.parse_json(body)
        report = PredictionReport(external_id, "succeeded", raw_status, *self.extract_files(payload, "payload"))
        if check := self._build_check(report, model):
            report = replace(report, **self.extract_files(payload, "payload", check)._asdict())
        return report

    def submit(self, request: SubmitRequest) -> SubmitResult:
        client = self._require(self._submit_client)
        _parse_queue_name(request.model)  # refuses a model that could not be polled later
        path = "/".join(endpoints.split_model_name(request.model))
        query = f"?{urlencode({'fal_webhook': request.webhook_url})}" if request.webhook_url else ""
        url = f"{self._api_url}/{path}{query}"
        response = client.send(url, request.input, webhook_url=request.webhook_url)
        with json_fields.translate_malformed(SubmitUncertain, "fal accepted a submission without a request id"):
            return SubmitResult(json_fields.require_id(response.fields.get("request_id"), "request_id"))

    def cancel(self, external_id: str, model: str | None = None) -> None:
        api, url = self._require(self._api), self._build_request_url(external_id, model)
        code, body, _ = api.request(f"{url}/cancel", statuses=(200, 202, 400), method="PUT")
        if code == 400 and _COMPLETED_CODE not in body.decode("utf-8", "replace"):
            raise ProviderRefused(f"fal returned {code} to a cancellation", facts={"status": code})

    def describe_models(self, kind: str) -> list[dict[str, Any]]:
        """Return the models in FAL_MODELS: fal documents no list. Their properties are derived from their names."""
        return [model for model in map(_describe_model, self.models) if model["kind"] == kind]

    def get_input_schema(self, model: str) -> dict[str, Any] | None:
        _parse_queue_name(model)
        return self._schemas.find_input(model)

    def _build_check(self, report: PredictionReport, model: str | None) -> Declares | None:
        """Return what the model's output schema says, if the report is unclear and there is a schema."""
        return self._schemas.build_check(model) if model and output_files.is_unclear(report) else None

    def _build_request_url(self, external_id: str, model: str | None) -> str:
        return f"{self._api_url}/{_parse_queue_name(model)}/requests/{endpoints.quote_path_segment(external_id)}"


def _find_final_error(code: int, body: bytes, headers: Mapping[str, str]) -> str | None:
    """Return the error in place of a result; None if the API failed instead: a proxy's page, `detail` as text."""
    fields: dict[str, Any] = {}
    with suppress(MalformedPayload):
        fields = json_fields.parse_json_object(body)
    kind = fields.get("error_type") or headers.get("X-Fal-Error-Type")
    text = f"the result is an error {code}" + (f", {kind}" if kind else "")
    details = fields.get("detail") if code not in _API_ERRORS else None
    items = details if isinstance(details, list) else []
    is_of_model = any(isinstance(item, dict) and item.keys() & {"type", "msg"} for item in items)
    is_final = kind or is_of_model or (fields and code == 422)
    return _join_error(text, fields) if is_final else None


def _join_error(error: object, payload: object) -> str | None:
    """Return fal's error; it is often only a status, with the cause in the payload's `detail`."""
    text = json_fields.optional_text(error)
    detail = json_fields.optional_text(payload.get("detail")) if isinstance(payload, dict) and text else None
    return to_storable(f"{text}: {detail}") if detail else text


def _parse_queue_name(model: str | None) -> str:
    """Return the queue of a model: "fal-ai/flux" for "fal-ai/flux/dev"."""
    if not model:
        raise ProviderRefused("a fal request without its model cannot be polled")
    segments = endpoints.split_model_name(model)
    length = 3 if segments[0] in _NAMESPACES else 2
    if len(segments) < length:
        raise ProviderRefused(f"{to_storable(model, 100)!r} is not a fal model: write it as {segments[0]}/owner/app")
    return "/".join(segments[:length])


def _describe_model(name: str) -> dict[str, Any]:
    """Derive the properties of a model from its name (text-to-image, image-to-video, edit, ...)."""
    words = frozenset(_NAME_WORDS.findall(name.lower()))
    has_image_input = "image-to-" in name or bool(words & _EDIT_WORDS)
    return {
        "name": name,
        "description": None,
        "kind": "video" if "video" in words else "image",
        "accepts": ["image"] if has_image_input else [],
        "picture_field": "image_url" if has_image_input else None,
    }
