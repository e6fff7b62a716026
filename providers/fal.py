"""
fal.ai: Ed25519 over a digest, with public keys from a JSON Web Key Set; the body holds the result of a queued request.

Sources: docs.fal.ai (model endpoints: webhooks, queue), fal-ai/fal (fal_client/client.py), fal-ai/fal-js (queue.ts),
read 2026-11. Anybody's webhooks are signed with the same keys: FAL_USER_ID says whose are taken.
"""

import re
from typing import Any, ClassVar, Final
from urllib.parse import urlencode

from moorage.errors import (
    BadSignature,
    KeysStale,
    MalformedPayload,
    ProviderRefused,
    ProviderUnavailable,
    SubmitUncertain,
)
from moorage.provider_types import (
    OutputFile,
    PredictionReport,
    PredictionStatus,
    SubmitRequest,
    SubmitResult,
    VerifiedDelivery,
)
from moorage.settings import Settings
from moorage.text import to_storable
from moorage.urls import HostAllowlist
from providers import endpoints, json_fields, output_files, signatures
from providers.api_client import ApiClient
from providers.base import Provider
from providers.jwks import KeySet
from providers.signatures import Headers
from providers.submit_client import SubmitClient

_PREFIX: Final = "x-fal-webhook-"
_WEBHOOK_STATUSES: Final[dict[str, PredictionStatus]] = {"OK": "succeeded", "ERROR": "failed"}
_QUEUE_STATUSES: Final[dict[str, PredictionStatus]] = {
    "IN_QUEUE": "queued",
    "IN_PROGRESS": "running",
    "COMPLETED": "succeeded",  # a failure is COMPLETED too, with an error
}
_NAMESPACES: Final = frozenset({"workflows", "comfy"})
_APP_ERRORS: Final = (400, 422)  # a result that is the model's own refusal
_ALREADY_COMPLETED: Final = "ALREADY_COMPLETED"
_WORDS: Final = re.compile(r"[a-z0-9]+")
_EDITING: Final = frozenset({"edit", "kontext", "redux"})


class Fal(Provider):
    """
    fal.ai's queue, or whatever answers like it at FAL_QUEUE_URL.

    A webhook's id is the digest of its body: the id of the request, which a retry repeats, would drop unseen a second
    webhook that says something else.

    Attributes:
        keys: that webhooks are signed with.
    """

    name = "fal"
    webhook_setting = "FAL_KEY or FAL_USER_ID"
    submit_setting = "FAL_KEY"
    recorded_headers: ClassVar[frozenset[str]] = Provider.recorded_headers | {
        "x-fal-webhook-request-id",
        "x-fal-webhook-timestamp",
        "x-fal-webhook-user-id",
    }

    def __init__(self, settings: Settings) -> None:
        hosts = HostAllowlist(settings.fal_output_hosts, settings.egress_allow, setting="FAL_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=())
        self._users = frozenset(settings.fal_user_id)
        self._queue_url = settings.fal_queue_url
        self._models = settings.fal_models
        endpoints.validate_models(self._models, _app, "FAL_MODELS")
        for url in settings.constants.fal_jwks_url:
            endpoints.require_secure_url(url, hosts, "MOORAGE_DEV_FAL_JWKS_URL")
        self.key_set: Final = KeySet("fal's key set", settings.constants.fal_jwks_url)
        if settings.fal_key:
            endpoints.require_secure_url(self._queue_url, hosts, "FAL_QUEUE_URL")
            header = endpoints.build_token_header("Key", settings.fal_key, "FAL_KEY")
            self._api = ApiClient("fal", header, max_bytes=settings.webhook_max_bytes)
            self._submitter = SubmitClient("fal", header, max_bytes=settings.webhook_max_bytes)

    @property
    def has_secret(self) -> bool:
        """Return whether FAL_KEY or FAL_USER_ID is set: the keys themselves are public."""
        return self.can_poll or bool(self._users)

    def _verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        signed = signatures.parse_digest_signature(headers, body, now, prefix=_PREFIX)
        if self._users and signed.user_id not in self._users:
            raise BadSignature(f"it is signed for another user of fal than FAL_USER_ID names: {signed.user_id}")
        keys = self.key_set.keys
        matches = signed.matches(keys)
        if self.key_set.may_fetch() and (self.key_set.is_stale() or not matches):
            raise KeysStale("fal's public keys are to be fetched")
        if not matches and self.key_set.keys is not keys:  # they were fetched while these were tried
            raise KeysStale("fal's public keys just changed")
        if not keys:
            raise KeysStale("fal's public keys could not be fetched")
        if not matches:
            raise BadSignature("no key of fal's made this signature, or the body was changed on its way")
        return VerifiedDelivery(webhook_id=None)

    def fetch_keys(self) -> None:
        """Fetch the key set of fal.ai, at most once in 5 minutes; keys that are known outlive a failure."""
        self.key_set.fetch()

    def parse_report(self, body: bytes) -> PredictionReport:
        """
        Return what a webhook says of a request.

        Raises:
            Unreadable: it is no webhook of fal's.
        """
        said = json_fields.parse_json_object(body)
        raw_status = json_fields.require_text(said.get("status"), "status")
        status = _WEBHOOK_STATUSES.get(raw_status, "unknown")
        payload = said.get("payload")
        reason = json_fields.optional_text(said.get("payload_error"))
        return PredictionReport(
            external_id=json_fields.require_id(said.get("request_id"), "request_id"),
            status=status,
            raw_status=raw_status,
            outputs=self._files(payload) if status == "succeeded" else (),
            error=_error(said.get("error"), payload) or reason,
            needs_fetch=status == "succeeded" and payload is None and reason is not None,
        )

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:
        """Ask for status, then result, at the address that the model names; raises as `Provider.poll` says."""
        if self._api is None:
            raise ProviderRefused("fal cannot be asked: set FAL_KEY")
        request_url = f"{self._queue_url}/{_app(model)}/requests/{endpoints.quote_path_segment(external_id)}"
        said = _answer(self._api.request(f"{request_url}/status", statuses=(200, 202))[1])
        raw_status = to_storable(str(said.get("status")), 100)
        status = _QUEUE_STATUSES.get(raw_status, "unknown")
        error = json_fields.optional_text(said.get("error"))
        if status != "succeeded" or error:
            return PredictionReport(external_id, "failed" if status == "succeeded" else status, raw_status, error=error)
        code, body = self._api.request(request_url, statuses=(200, *_APP_ERRORS))
        payload = _answer(body)
        if code != 200:
            return PredictionReport(
                external_id, "failed", raw_status, error=_error(f"the result is an error {code}", payload)
            )
        return PredictionReport(external_id, "succeeded", raw_status, outputs=self._files(payload))

    def submit(self, request: SubmitRequest) -> SubmitResult:
        """Put a request into the queue: POST {queue}/{model}?fal_webhook=; raises as `Provider.submit` says."""
        if self._submitter is None:
            raise ProviderRefused("fal takes no orders: set FAL_KEY")
        _app(request.model)  # what could not be polled later must not be submitted
        path = "/".join(endpoints.split_model_name(request.model))
        url = f"{self._queue_url}/{path}?{urlencode({'fal_webhook': request.webhook_url})}"
        answer = self._submitter.send(url, request.input, webhook_url=request.webhook_url)
        try:
            return SubmitResult(json_fields.require_id(answer.fields.get("request_id"), "request_id"))
        except MalformedPayload as error:
            raise SubmitUncertain(f"fal took an order and named no request: {error}") from error

    def cancel(self, external_id: str, model: str | None = None) -> None:
        """Take a request out of the queue, or interrupt it: PUT .../cancel; raises as `Provider.cancel` says."""
        if self._api is None:
            raise ProviderRefused("fal cannot be asked: set FAL_KEY")
        url = f"{self._queue_url}/{_app(model)}/requests/{endpoints.quote_path_segment(external_id)}/cancel"
        code, body = self._api.request(url, statuses=(200, 202, 400), method="PUT")
        if code == 400 and _ALREADY_COMPLETED not in body.decode("utf-8", "replace"):
            raise ProviderRefused(f"fal answered {code} when asked to stop a request", facts={"status": code})

    def list_models(self, kind: str) -> list[dict[str, Any]]:
        """Return those of FAL_MODELS; fal documents no list, and their names tell what they make."""
        known = [_known(name) for name in self._models]
        return [one for one in known if one["kind"] == kind]

    def get_input_schema(self, model: str) -> None:
        """Return None, for fal offers none that is documented; raises ProviderRefused for what cannot be a model."""
        _app(model)

    def _files(self, payload: Any) -> tuple[OutputFile, ...]:
        """Return the files of a result: fal's are objects with a url; a result without any may hold bare addresses."""
        return output_files.extract_files(
            payload, "payload", self.refusal_reason, key="url"
        ) or output_files.extract_files(payload, "payload", self.refusal_reason)


def _answer(body: bytes) -> dict[str, Any]:
    try:
        return json_fields.parse_json_object(body)
    except MalformedPayload as error:
        raise ProviderUnavailable(f"fal answered with what is no JSON object: {error}") from error


def _error(error: object, payload: object) -> str | None:
    """Return fal's reason; its own is often only a status, and what was wrong stands in the payload's detail."""
    text = json_fields.optional_text(error)
    detail = json_fields.optional_text(payload.get("detail")) if isinstance(payload, dict) and text else None
    return to_storable(f"{text}: {detail}") if detail else text


def _app(model: str | None) -> str:
    """Return the part of a model's name that its queue is known by: "fal-ai/flux/dev" is asked at fal-ai/flux."""
    if not model:
        raise ProviderRefused("fal cannot be asked about a request that was registered without its model")
    steps = endpoints.split_model_name(model)
    wanted = 3 if steps[0] in _NAMESPACES else 2
    if len(steps) < wanted:
        raise ProviderRefused(f"{to_storable(model, 100)!r} is no model of fal's: write it as {steps[0]}/owner/app")
    return "/".join(steps[:wanted])


def _known(name: str) -> dict[str, Any]:
    """Return what a model's name says of it: fal's end in text-to-image, image-to-video, edit, ..."""
    words = frozenset(_WORDS.findall(name.lower()))
    takes_picture = "image-to-" in name or bool(words & _EDITING)
    return {
        "name": name,
        "description": None,
        "kind": "video" if "video" in words else "image",
        "accepts": ["image"] if takes_picture else [],
        "picture_field": "image_url" if takes_picture else None,
    }
