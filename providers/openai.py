"""
OpenAI: Standard Webhooks `v1` that contain only the id of a response; its images are polled, as base64. Submissions use
the Images API (generations, and with input files edits), which returns the images in the response.

Sources: openai-python (lib/_webhooks.py, types/webhooks, types/responses), openai-openapi, guides/webhooks; read
2026-11. A project sends webhooks of every kind: those that are not about the Responses API are recorded and ignored.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Final

from pydantic import SecretStr

from moorage.errors import ConfigError, MalformedPayload, ProviderRefused, SubmitUncertain, UnrelatedEvent
from moorage.provider_types import OutputFile, PredictionReport, PredictionStatus, SubmitRequest, SubmitResult
from moorage.settings import Settings
from moorage.urls import HostAllowlist
from providers import endpoints, inline_files, json_fields, output_files, webhook_signing
from providers.base import Provider
from providers.output_files import ExtractionResult
from providers.signature_verifiers import StandardVerifier
from providers.submit_client import SubmitResponse, is_file

_STATUSES: Final[dict[str, PredictionStatus]] = {
    "queued": "queued",
    "in_progress": "running",
    "completed": "succeeded",
    "failed": "failed",
    "incomplete": "failed",
    "cancelled": "cancelled",
}
_END_EVENTS: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_IMAGE_CALL: Final = "image_generation_call"
_GPT_IMAGE: Final = "gpt-image-"
_TEXT: Final = {"type": ["string", "null"]}
_GPT_IMAGE_INPUT: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "minLength": 1},
        "output_format": {"enum": ["png", "webp", "jpeg", None]},
        **dict.fromkeys(("size", "quality", "background"), _TEXT),
    },
    "required": ["prompt"],
}
_MAX_RESPONSE_BYTES: Final = 128 * 2**20  # includes the images as base64
_ENDED: Final = (400, 404, 409)  # the response ended already; the next poll returns its status
_URL_LIFE_SECONDS: Final = 3600.0


class OpenAI(Provider):
    """The Images API for submissions, and the Responses API with the image generation tool, at OPENAI_API_URL."""

    name, label = "openai", "OpenAI"
    is_synchronous = True
    submit_response_seconds = 180.0  # an image of high quality takes up to two minutes
    hosts_setting, url_setting, models_setting = "OPENAI_OUTPUT_HOSTS", "OPENAI_API_URL", "OPENAI_MODELS"
    webhook_setting = "OPENAI_WEBHOOK_SECRET"
    submit_setting = "OPENAI_API_KEY"
    file_fields = frozenset({"image", "mask"})
    file_path = re.compile(r"/v1(/[\w-]+)+/content", re.ASCII)
    max_delivery_bytes: ClassVar[int | None] = 256 * 2**10  # an event has ids and no result: a few hundred bytes
    recorded_headers = Provider.recorded_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        hosts = HostAllowlist(settings.openai_output_hosts, settings.egress_allow, setting=self.hosts_setting)
        secrets = _decode_secrets(settings.openai_webhook_secret, self.webhook_setting)
        super().__init__(settings, hosts=hosts, verifier=StandardVerifier(secrets, names=[self.webhook_headers]))
        self._api_url = settings.openai_api_url
        self.models = settings.openai_models
        if settings.openai_api_key:
            self._create_clients("Bearer", settings.openai_api_key, _MAX_RESPONSE_BYTES)

    def parse_report(self, body: bytes) -> PredictionReport:
        """Parse an event: a response ended; its result must be polled. Raises as `Provider.parse_report`."""
        event = json_fields.parse_json_object(body)
        kind = json_fields.require_text(event.get("type"), "type")
        subject, _, end = kind.partition(".")
        if subject != "response" or end not in _END_EVENTS:
            raise UnrelatedEvent(f"event {kind} is not about an image or video")
        data = event.get("data")
        if not isinstance(data, dict):
            raise MalformedPayload("data is missing or not an object")
        return PredictionReport(
            external_id=json_fields.require_id(data.get("id"), "data.id"),
            status=_STATUSES[end],
            raw_status=kind,
            error=None if self.can_poll else "set OPENAI_API_KEY",
            needs_fetch=True,
        )

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:  # noqa: ARG002 (the id is enough here)
        url = f"{self._api_url}/v1/responses/{endpoints.quote_path_segment(external_id)}"
        return self._fetch_report(url, external_id, self._parse_response)

    def submit(self, request: SubmitRequest) -> SubmitResult:
        client = self._require(self._submit_client)
        body = build_images_request(request)
        path = "edits" if any(is_file(body.get(name)) for name in self.file_fields) else "generations"
        response = client.send(f"{self._api_url}/v1/images/{path}", body, timeout_seconds=request.timeout_seconds)
        external_id = _request_id(response) or str(request.prediction_id)
        with json_fields.translate_malformed(SubmitUncertain, "OpenAI accepted a submission without images"):
            files = self.extract_files(_require_data(response.fields), "data")
            report = build_report(response.fields, external_id, request.model, files, self.output_lifetime_seconds)
        return SubmitResult(external_id, report)

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (the id is enough here)
        api = self._require(self._api)
        url = f"{self._api_url}/v1/responses/{endpoints.quote_path_segment(external_id)}/cancel"
        api.request(url, statuses=(200, 202, *_ENDED), method="POST")

    def describe_models(self, kind: str) -> list[dict[str, Any]]:
        """Return the models in OPENAI_MODELS; those of the name gpt-image have an image input."""
        image_input = {"accepts": ["image"], "picture_field": "image"}
        models = super().describe_models(kind)
        return [model | (image_input if model["name"].startswith(_GPT_IMAGE) else {}) for model in models]

    def get_input_schema(self, model: str) -> Mapping[str, Any] | None:
        """Return what is documented of the inputs of gpt-image: OpenAI publishes no schemas of models."""
        return _GPT_IMAGE_INPUT if model.startswith(_GPT_IMAGE) else None

    def _parse_response(self, body: bytes) -> PredictionReport:
        response = json_fields.parse_json_object(body)
        raw_status = json_fields.require_text(response.get("status"), "status")
        status, items = _STATUSES.get(raw_status, "unknown"), response.get("output")
        is_cut = raw_status == "incomplete"  # what was finished before its end was generated as requested
        if is_cut and isinstance(items, list):
            items = [item if isinstance(item, dict) and item.get("status") == "completed" else None for item in items]
        files = self._extract_images(items if status == "succeeded" or is_cut else None)
        if is_cut and files.outputs:
            status = "succeeded"
        return PredictionReport(
            external_id=json_fields.require_id(response.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=files.outputs,
            mentions=files.mentions,
            error=_get_error(response),
            model=json_fields.optional_model(response),
        )

    def _extract_images(self, items: object) -> ExtractionResult:
        """
        Return the results of image generation calls, and the images among the `outputs` of other tools.

        A failed call has no result. Other files are mentions.
        """
        calls: dict[str, str | None] = {}  # by path: the text of a result, which is a file whatever it looks like
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict):
                continue
            if item.get("type") == _IMAGE_CALL and isinstance(item.get("result"), str) and item["result"]:
                calls[f"output[{index}].result"] = item["result"]
            for place, made in enumerate(item["outputs"] if isinstance(item.get("outputs"), list) else ()):
                if isinstance(made, dict) and made.get("type") == "image":
                    calls[f"output[{index}].outputs[{place}].url"] = None
        files = output_files.keep_outputs(self.extract_files(items, "output"), calls, "is no image of a tool")
        named: dict[str, OutputFile | None] = {file.path: file for file in files.outputs}
        named |= {file.path: None for file in files.mentions}
        images = (named.get(path, text and inline_files.decode_base64_file(path, text)) for path, text in calls.items())
        return ExtractionResult(tuple(image for image in images if image), files.mentions)


def _get_error(response: dict[str, Any]) -> str | None:
    error = json_fields.optional_text(response.get("error"))
    details = response.get("incomplete_details")
    return error or (json_fields.optional_text(details.get("reason")) if isinstance(details, dict) else None)


def _decode_secrets(values: Iterable[SecretStr], setting: str) -> tuple[bytes, ...]:
    """Decode the secrets. Without whsec_ OpenAI's library uses them as text, so decoding base64 would be a guess."""
    secrets = tuple(values)
    for number, secret in enumerate(secrets, 1):
        if not secret.get_secret_value().startswith("whsec_"):
            raise ConfigError(f"{setting}: secret {number} does not begin with whsec_: copy it as OpenAI shows it")
    return webhook_signing.decode_standard_secrets(secrets, setting)


def _request_id(response: SubmitResponse) -> str | None:
    """Return OpenAI's request id, which its support needs."""
    try:
        return json_fields.require_id(response.headers.get("x-request-id"), "x-request-id")
    except MalformedPayload:
        return None


# The Images API. Sources: openai-openapi (openapi.yaml), openai-python (resources/images.py), read 2026-11.
# The response has the images: gpt-image-* always as base64, dall-e-* as a URL that is valid for 60 minutes unless
# base64 is requested.


def build_images_request(request: SubmitRequest) -> dict[str, Any]:
    """
    Return the body, with base64 instead of URLs if the model has the choice.

    Raises ProviderRefused for `stream`, and for the URL of an image: OpenAI takes files.
    """
    if request.input.get("stream"):
        raise ProviderRefused("streaming is not supported: remove `stream` from the input")
    if request.model.startswith(_GPT_IMAGE) and any(
        request.input.get(x) and not is_file(request.input[x]) for x in OpenAI.file_fields
    ):
        raise ProviderRefused('image and mask are sent as files: write {"upload": ID} or {"variant": "RENDER/0"}')
    body = {**request.input, "model": request.model}
    if request.model.startswith("dall-e-"):
        body.setdefault("response_format", "b64_json")
    return body


def build_report(
    response: dict[str, Any], external_id: str, model: str, files: ExtractionResult, life_seconds: float | None
) -> PredictionReport:
    """Return success; of an image that is given as base64 and as a URL, the URL is a mention."""
    whole = {file.path.removesuffix(".b64_json") for file in files.outputs if file.data is not None}
    paths = [file.path for file in files.outputs if file.url is None or file.path.removesuffix(".url") not in whole]
    files = output_files.keep_outputs(files, paths, "is the same image as its b64_json")
    created_at = json_fields.optional_unix_time(response.get("created"))
    has_urls = any(output.url is not None for output in files.outputs)
    return PredictionReport(
        external_id=external_id,
        status="succeeded",
        raw_status="200",
        outputs=files.outputs,
        mentions=files.mentions,
        completed_at=created_at,
        expires_at=created_at + timedelta(seconds=life_seconds or _URL_LIFE_SECONDS)
        if created_at and has_urls
        else None,
        model=model,
    )


def _require_data(response: dict[str, Any]) -> list[Any]:
    data = response.get("data")
    if not isinstance(data, list):
        raise MalformedPayload("data is missing or not a list")
    return data
