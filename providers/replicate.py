"""
Replicate: Standard Webhooks `v1`; the body is the bare prediction, as GET /v1/predictions/{id} gives it.

Sources: replicate-python (webhook.py, prediction.py, helpers.py), replicate-javascript (index.d.ts), read 2026-11;
replicate.com/docs/topics/webhooks and /docs/topics/predictions.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final

from moorage import logs
from moorage.errors import MalformedPayload, ProviderRefused, ProviderUnavailable, SubmitUncertain
from moorage.provider_types import (
    ListedPrediction,
    PredictionReport,
    PredictionStatus,
    SubmitRequest,
    SubmitResult,
    VerifiedDelivery,
)
from moorage.settings import Settings
from moorage.urls import HostAllowlist
from providers import endpoints, json_fields, output_files, replicate_list, replicate_models, signatures
from providers.api_client import ApiClient
from providers.base import Provider
from providers.signatures import Headers
from providers.submit_client import SubmitClient

log = logs.get_logger(__name__)

# `aborted` (the deadline passed before the start) is terminal, and missing in both Python clients' types.
_STATUSES: Final[dict[str, PredictionStatus]] = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "cancelled",
}
# Replicate does not document what it answers when asked to stop what has ended; the poll that follows tells how it did.
_ENDED: Final = (400, 409, 422)


class Replicate(Provider):
    """replicate.com, or whatever answers like it at REPLICATE_API_URL."""

    name = "replicate"
    webhook_setting = "REPLICATE_WEBHOOK_SECRET"
    submit_setting = "REPLICATE_API_TOKEN"
    output_lifetime_seconds: ClassVar[float | None] = (
        3600.0  # inputs, outputs, logs of API predictions are deleted then
    )
    recorded_headers = Provider.recorded_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        secrets = signatures.decode_standard_secrets(settings.replicate_webhook_secret, "REPLICATE_WEBHOOK_SECRET")
        hosts = HostAllowlist(settings.replicate_output_hosts, settings.egress_allow, setting="REPLICATE_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=secrets)
        self._api_url = settings.replicate_api_url
        self._token_header: dict[str, str] = {}
        self._models = settings.replicate_models
        endpoints.validate_models(self._models, replicate_models.ModelName.parse, "REPLICATE_MODELS")
        if settings.replicate_api_token:
            endpoints.require_secure_url(self._api_url, hosts, "REPLICATE_API_URL")
            header = endpoints.build_token_header("Bearer", settings.replicate_api_token, "REPLICATE_API_TOKEN")
            self._token_header = {header[0]: header[1]}
            self._api = ApiClient("Replicate", header, max_bytes=settings.webhook_max_bytes)
            self._submitter = SubmitClient("Replicate", header, max_bytes=settings.webhook_max_bytes)

    @property
    def can_list(self) -> bool:
        """Return whether REPLICATE_API_TOKEN is set."""
        return self._api is not None

    def _verify(self, headers: Headers, body: bytes, now: float) -> VerifiedDelivery:
        return VerifiedDelivery(signatures.verify_standard_v1(headers, body, now, secrets=self._secrets))

    def parse_report(self, body: bytes) -> PredictionReport:
        """
        Return what a prediction object says; a training, which has the same fields, is read alike.

        Raises:
            Unreadable: it is none.
        """
        prediction = json_fields.parse_json_object(body)
        raw_status = json_fields.require_text(prediction.get("status"), "status")
        status = _STATUSES.get(raw_status, "unknown")
        completed_at = json_fields.optional_datetime(prediction.get("completed_at"))
        return PredictionReport(
            external_id=json_fields.require_id(prediction.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=output_files.extract_files(prediction.get("output"), "output", self.refusal_reason)
            if status == "succeeded"
            else (),
            error=json_fields.optional_text(prediction.get("error")),
            data_removed=prediction.get("data_removed") is True,
            completed_at=completed_at,
            expires_at=self._end_of_life(completed_at),
            model=replicate_list.get_model(prediction),
        )

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:  # noqa: ARG002 (the id is enough here)
        """Ask GET /v1/predictions/{id}; raises ProviderUnavailable and ProviderRefused as `Provider.poll` says."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked: set REPLICATE_API_TOKEN")
        body = self._api.get(f"{self._api_url}/v1/predictions/{endpoints.quote_path_segment(external_id)}")
        try:
            report = self.parse_report(body)
        except MalformedPayload as error:
            raise ProviderUnavailable(f"Replicate answered 200 with what is no prediction: {error}") from error
        if report.external_id != external_id:
            raise ProviderUnavailable(f"Replicate answered about {report.external_id} when asked about another")
        return report

    def list_predictions(self, since: datetime) -> Iterator[list[ListedPrediction]]:
        """Go through GET /v1/predictions?created_after=, 100 a page; raises as `Provider.list_since` says."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked what it made: set REPLICATE_API_TOKEN")
        return replicate_list.iterate_pages(self._api, f"{self._api_url}/v1/predictions", since)

    def submit(self, request: SubmitRequest) -> SubmitResult:
        """Create a prediction that tells us of its end alone; raises as `Provider.submit` says."""
        if self._submitter is None:
            raise ProviderRefused("Replicate takes no orders: set REPLICATE_API_TOKEN")
        model = replicate_models.ModelName.parse(request.model)
        fields = {
            **model.version_field(),
            "input": request.input,
            "webhook": request.webhook_url,
            "webhook_events_filter": ["completed"],
        }
        answer = self._submitter.send(f"{self._api_url}{model.submit_path()}", fields, webhook_url=request.webhook_url)
        try:
            external_id = json_fields.require_id(answer.fields.get("id"), "id")
        except MalformedPayload as error:
            raise SubmitUncertain(f"Replicate took an order and named no prediction: {error}") from error
        if (
            answer.fields.get("webhook") != request.webhook_url
        ):  # it was dropped unseen before (replicate-javascript #321)
            log.warning("submit.webhook_not_echoed", provider=self.name, external_id=external_id)
        return SubmitResult(external_id)

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (the id is enough here)
        """Stop a prediction: POST /v1/predictions/{id}/cancel; raises as `Provider.cancel` says."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked: set REPLICATE_API_TOKEN")
        url = f"{self._api_url}/v1/predictions/{endpoints.quote_path_segment(external_id)}/cancel"
        self._api.request(url, statuses=(200, 201, 202, *_ENDED), method="POST")

    def list_models(self, kind: str) -> list[dict[str, Any]]:
        """Return those of REPLICATE_MODELS that Replicate knows, as their schemas tell; raises as `Provider.models`."""
        if self._api is None:
            raise ProviderRefused("Replicate cannot be asked for its models: set REPLICATE_API_TOKEN")
        offered = replicate_models.describe_models(self._api, self._api_url, self._models)
        return [one for one in offered if one["kind"] == kind]

    def get_input_schema(self, model: str) -> Mapping[str, Any] | None:
        """Return the schema of a model's latest version, or of the one it names; raises as `Provider.schema` says."""
        if self._api is None:
            return None
        return replicate_models.get_input_schema(self._api, self._api_url, replicate_models.ModelName.parse(model))

    def download_headers(self, url: str) -> dict[str, str]:
        """Return the token for the allowed hosts (some files need it), over https: or to an exact exempt address."""
        if not self._token_header or self.refusal_reason(url) is not None or not self.hosts.is_safe_for_secrets(url):
            return {}
        return dict(self._token_header)

    def _end_of_life(self, completed_at: datetime | None) -> datetime | None:
        if completed_at is None or self.output_lifetime_seconds is None:
            return None
        try:
            return completed_at + timedelta(seconds=self.output_lifetime_seconds)
        except OverflowError:  # the last hour of the year 9999
            return None
