"""
OpenAI: Standard Webhooks `v1` that name a response and no more; its pictures come by GET, as base64. What moorage
itself orders is made by the Images API, which answers with the pictures.

Sources: openai-python (lib/_webhooks.py, types/webhooks, types/responses), openai-openapi, guides/webhooks; read
2026-11. A project's webhooks tell of all it does: what is no response of the Responses API is recorded and ignored.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Final

from pydantic import SecretStr

from moorage.errors import (
    ConfigError,
    MalformedPayload,
    ProviderRefused,
    ProviderUnavailable,
    SubmitUncertain,
    UnrelatedEvent,
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
from providers.signatures import Headers
from providers.submit_client import SubmitClient, SubmitResponse

_STATUSES: Final[dict[str, PredictionStatus]] = {
    "queued": "queued",
    "in_progress": "running",
    "completed": "succeeded",
    "failed": "failed",
    "incomplete": "failed",
    "cancelled": "cancelled",
}
_ENDS: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_ANSWER_BYTES: Final = 128 * 2**20  # a response holds its pictures
_MAKING_SECONDS: Final = 180.0  # a picture of high quality takes up to two minutes
_ENDED: Final = (400, 404, 409)  # cancelling what has ended is an error there; the poll that follows tells how it ended

URL_LIFETIME: Final = timedelta(minutes=60)


class OpenAI(Provider):
    """The Images API for orders, and the Responses API with the image generation tool, at OPENAI_API_URL."""

    name = "openai"
    is_synchronous = True
    webhook_setting = "OPENAI_WEBHOOK_SECRET"
    submit_setting = "OPENAI_API_KEY"
    recorded_headers: ClassVar[frozenset[str]] = Provider.recorded_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        hosts = HostAllowlist(settings.openai_output_hosts, settings.egress_allow, setting="OPENAI_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=_secrets(settings.openai_webhook_secret))
        self._api_url = settings.openai_api_url
        self._models = settings.openai_models
        if settings.openai_api_key:
            endpoints.require_secure_url(self._api_url, hosts, "OPENAI_API_URL")
            header = endpoints.build_token_header("Bearer", settings.openai_api_key, "OPENAI_API_KEY")
            self._api = ApiClient("OpenAI", header, max_bytes=_ANSWER_BYTES)
            self._submitter = SubmitClient("OpenAI", header, max_bytes=_ANSWER_BYTES, answer_seconds=_MAKING_SECONDS)

    def _verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        return VerifiedDelivery(signatures.verify_standard_v1(headers, body, now, secrets=self._secrets))

    def parse_report(self, body: bytes) -> PredictionReport:
        """
        Return what an event says: that a response ended, not with what.

        Raises:
            Unreadable: it is no event.
            NotOurs: it tells of something else than a response.
        """
        event = json_fields.parse_json_object(body)
        kind = json_fields.require_text(event.get("type"), "type")
        subject, _, end = kind.partition(".")
        if subject != "response" or end not in _ENDS:
            raise UnrelatedEvent(f"an event {kind} tells of no image or video")
        data = event.get("data")
        if not isinstance(data, dict):
            raise MalformedPayload("data is missing or is no object")
        return PredictionReport(
            external_id=json_fields.require_id(data.get("id"), "data.id"),
            status=_STATUSES[end],
            raw_status=kind,
            error=None if self.can_poll else "set OPENAI_API_KEY",
            needs_fetch=True,
        )

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:  # noqa: ARG002 (the id is enough here)
        """Ask GET /v1/responses/{id}; raises ProviderUnavailable and ProviderRefused as `Provider.poll` says."""
        if self._api is None:
            raise ProviderRefused("OpenAI cannot be asked: set OPENAI_API_KEY")
        body = self._api.get(f"{self._api_url}/v1/responses/{endpoints.quote_path_segment(external_id)}")
        try:
            report = self._response(json_fields.parse_json_object(body))
        except MalformedPayload as error:
            raise ProviderUnavailable(f"OpenAI answered 200 with what is no response: {error}") from error
        if report.external_id != external_id:
            raise ProviderUnavailable(f"OpenAI answered about {report.external_id} when asked about another")
        return report

    def submit(self, request: SubmitRequest) -> SubmitResult:
        """Have pictures made, which takes minutes: POST /v1/images/generations; raises as `Provider.submit` says."""
        if self._submitter is None:
            raise ProviderRefused("OpenAI takes no orders: set OPENAI_API_KEY")
        url, body = f"{self._api_url}/v1/images/generations", build_images_request(request)
        answer = self._submitter.send(url, body, timeout_seconds=request.timeout_seconds)
        external_id = _request_id(answer) or str(request.prediction_id)
        try:
            made = build_report(answer.fields, external_id, request.model, self.refusal_reason)
        except MalformedPayload as error:
            raise SubmitUncertain(f"OpenAI answered an order with what holds no pictures: {error}") from error
        return SubmitResult(external_id, made)

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (the id is enough here)
        """Stop a response: POST /v1/responses/{id}/cancel; raises as `Provider.cancel` says."""
        if self._api is None:
            raise ProviderRefused("OpenAI cannot be asked: set OPENAI_API_KEY")
        url = f"{self._api_url}/v1/responses/{endpoints.quote_path_segment(external_id)}/cancel"
        self._api.request(url, statuses=(200, 202, *_ENDED), method="POST")

    def list_models(self, kind: str) -> list[dict[str, Any]]:
        """Return those of OPENAI_MODELS: they make pictures from words."""
        if kind != "image":
            return []
        facts: dict[str, Any] = {"description": None, "kind": kind, "accepts": [], "picture_field": None}
        return [{"name": name, **facts} for name in self._models]

    def _response(self, response: dict[str, Any]) -> PredictionReport:
        raw_status = json_fields.require_text(response.get("status"), "status")
        status = _STATUSES.get(raw_status, "unknown")
        model = response.get("model")
        return PredictionReport(
            external_id=json_fields.require_id(response.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=tuple(self._pictures(response.get("output"))) if status == "succeeded" else (),
            error=_reason(response),
            model=to_storable(model, 200) if isinstance(model, str) and model else None,
        )

    def _pictures(self, items: object) -> Iterator[OutputFile]:
        """Yield the results of the image generation calls; one that failed has none."""
        for place, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict) or item.get("type") != "image_generation_call":
                continue
            path, result = f"output[{place}].result", item.get("result")
            if isinstance(result, str) and result:
                yield from output_files.extract_files(result, path, self.refusal_reason) or (
                    output_files.decode_base64_file(path, result),
                )


def _reason(response: dict[str, Any]) -> str | None:
    """Return why a response failed, or is incomplete."""
    error = json_fields.optional_text(response.get("error"))
    details = response.get("incomplete_details")
    return error or (json_fields.optional_text(details.get("reason")) if isinstance(details, dict) else None)


def _secrets(given: Iterable[SecretStr]) -> tuple[bytes, ...]:
    """Decode the secrets; without whsec_ OpenAI's own library takes one as text, so that base64 would be a guess."""
    secrets = tuple(given)
    for place, one in enumerate(secrets, 1):
        if not one.get_secret_value().startswith("whsec_"):
            raise ConfigError(f"OPENAI_WEBHOOK_SECRET: secret {place} does not begin with whsec_: write it as shown")
    return signatures.decode_standard_secrets(secrets, "OPENAI_WEBHOOK_SECRET")


def _request_id(answer: SubmitResponse) -> str | None:
    """Return OpenAI's own name of a request, which its support asks for."""
    try:
        return json_fields.require_id(answer.headers.get("x-request-id"), "x-request-id")
    except MalformedPayload:
        return None


# OpenAI's Images API: what is asked of POST /v1/images/generations, and what its answer holds; pure.
#
# Sources: openai-openapi (openapi.yaml), openai-python (resources/images.py), read 2026-11. It answers with the
# pictures
# themselves: gpt-image-* always as base64, dall-e-* as a URL that lives 60 minutes unless base64 is asked for.


def build_images_request(request: SubmitRequest) -> dict[str, Any]:
    """
    Return the body of a request: the input, its model, and base64 instead of URLs where that is a choice.

    Raises:
        ProviderRefused: the input asks for an answer in pieces.
    """
    if request.input.get("stream"):
        raise ProviderRefused("OpenAI's pictures are taken whole: leave `stream` out of the input")
    asked = {**request.input, "model": request.model}
    if request.model.startswith("dall-e-"):
        asked.setdefault("response_format", "b64_json")
    return asked


def build_report(
    answer: dict[str, Any], external_id: str, model: str, check_url: Callable[[str], str | None]
) -> PredictionReport:
    """
    Return what an answer says: success, with a file for each item of `data`.

    Raises:
        Unreadable: `data` is no list.
    """
    data = answer.get("data")
    if not isinstance(data, list):
        raise MalformedPayload("data is missing or is no list")
    outputs = tuple(_files(data, check_url))
    created_at = _moment_or_none(answer.get("created"))
    has_urls = any(output.url is not None for output in outputs)
    return PredictionReport(
        external_id=external_id,
        status="succeeded",
        raw_status="200",
        outputs=outputs,
        completed_at=created_at,
        expires_at=created_at + URL_LIFETIME if created_at and has_urls else None,
        model=model,
    )


def _files(data: list[Any], allows: Callable[[str], str | None]) -> Iterator[OutputFile]:
    """Yield the file of each item; like every dialect's, more than 1,000 of them are no answer."""
    if len(data) > output_files.MAX_FILES:
        raise MalformedPayload(f"data names more than {output_files.MAX_FILES} files")
    for place, item in enumerate(data):
        if not isinstance(item, dict):
            continue
        encoded = item.get("b64_json")
        if isinstance(encoded, str) and encoded:
            yield output_files.decode_base64_file(f"data[{place}].b64_json", encoded)
        else:
            yield from output_files.extract_files(item.get("url"), f"data[{place}].url", allows)


def _moment_or_none(value: object) -> datetime | None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**11:
        return None
    return datetime.fromtimestamp(value, UTC)
