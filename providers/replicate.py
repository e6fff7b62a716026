"""
Replicate: Standard Webhooks `v1`; the body is the prediction, as GET /v1/predictions/{id} returns it.

Sources: replicate-python (webhook.py, prediction.py, helpers.py), replicate-javascript (index.d.ts), read 2026-11;
replicate.com/docs/topics/webhooks and /docs/topics/predictions.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final

from moorage import logs
from moorage.errors import MoorageError, SubmitUncertain
from moorage.provider_types import ListedPrediction, PredictionReport, PredictionStatus, SubmitRequest, SubmitResult
from moorage.settings import Settings
from moorage.urls import HostAllowlist
from providers import (
    endpoints,
    json_fields,
    output_files,
    output_schemas,
    replicate_list,
    replicate_models,
    webhook_signing,
)
from providers.base import Provider
from providers.output_schemas import Declares
from providers.signature_verifiers import StandardVerifier

log = logs.get_logger(__name__)

# `aborted` (the deadline passed before the start) is terminal, but missing in the types of both Python clients.
_STATUSES: Final[dict[str, PredictionStatus]] = {
    "starting": "queued",
    "processing": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "canceled": "cancelled",
    "aborted": "cancelled",
}
# The prediction ended already (status not documented by Replicate); the next poll returns its status.
_ENDED: Final = (400, 409, 422)


class Replicate(Provider):
    """replicate.com, or a compatible server at REPLICATE_API_URL."""

    name, label = "replicate", "Replicate"
    hosts_setting, url_setting, models_setting = "REPLICATE_OUTPUT_HOSTS", "REPLICATE_API_URL", "REPLICATE_MODELS"
    webhook_setting = "REPLICATE_WEBHOOK_SECRET"
    submit_setting = "REPLICATE_API_TOKEN"
    # No dots and no escapes: a server could resolve them to another path of the API.
    file_path = re.compile(r"/v1/files(/(?!\.+(/|$))[\w.~-]+)+", re.ASCII)
    output_lifetime_seconds: ClassVar[float | None] = 3600.0  # then Replicate deletes the data of API predictions
    recorded_headers = Provider.recorded_headers | {"webhook-id", "webhook-timestamp"}

    def __init__(self, settings: Settings) -> None:
        secrets = webhook_signing.decode_standard_secrets(settings.replicate_webhook_secret, self.webhook_setting)
        hosts = HostAllowlist(settings.replicate_output_hosts, settings.egress_allow, setting=self.hosts_setting)
        super().__init__(settings, hosts=hosts, verifier=StandardVerifier(secrets, names=[self.webhook_headers]))
        self._api_url = settings.replicate_api_url
        self.models = settings.replicate_models
        endpoints.validate_models(self.models, replicate_models.ModelName.parse, self.models_setting)
        if settings.replicate_api_token:
            self._create_clients("Bearer", settings.replicate_api_token, settings.webhook_max_bytes)

    @property
    def can_list(self) -> bool:
        return self._api is not None

    def parse_report(self, body: bytes) -> PredictionReport:
        """Parse a prediction; a training has the same fields. Raises as `Provider.parse_report`."""
        return self._parse(body, output_schemas.say_nothing)

    def refine_report(self, report: PredictionReport, body: bytes, model: str | None) -> PredictionReport:
        model = report.model or model
        if self._api is None or model is None or not output_files.is_unclear(report):
            return report
        try:
            schema = replicate_models.get_output_schema(self._api, self._api_url, model)
        except MoorageError:  # it is not known: keys and hosts decide
            return report
        return self._parse(body, output_schemas.build_check(schema, "output")) if schema else report

    def _parse(self, body: bytes, declares: Declares) -> PredictionReport:
        prediction = json_fields.parse_json_object(body)
        raw_status = json_fields.require_text(prediction.get("status"), "status")
        status = _STATUSES.get(raw_status, "unknown")
        files = self.extract_files(prediction.get("output") if status == "succeeded" else None, "output", declares)
        report = PredictionReport(
            external_id=json_fields.require_id(prediction.get("id"), "id"),
            status=status,
            raw_status=raw_status,
            outputs=files.outputs,
            mentions=files.mentions,
            error=json_fields.optional_text(prediction.get("error")),
            data_removed=prediction.get("data_removed") is True,
            completed_at=json_fields.optional_datetime(prediction.get("completed_at")),
            model=json_fields.optional_model(prediction),
            prompt=json_fields.optional_prompt(prediction.get("input")),
        )
        return output_files.drop_inputs(report, prediction.get("input"))

    def poll(self, external_id: str, model: str | None = None) -> PredictionReport:
        url = f"{self._api_url}/v1/predictions/{endpoints.quote_path_segment(external_id)}"
        return self._fetch_report(
            url, external_id, lambda body: self.refine_report(self.parse_report(body), body, model)
        )

    def list_predictions(self, since: datetime) -> Iterator[list[ListedPrediction]]:
        return replicate_list.iterate_pages(self._require(self._api), f"{self._api_url}/v1/predictions", since)

    def submit(self, request: SubmitRequest) -> SubmitResult:
        client = self._require(self._submit_client)
        model = replicate_models.ModelName.parse(request.model)
        webhook = {"webhook": request.webhook_url, "webhook_events_filter": ["completed"]}
        fields = {**model.version_field(), "input": request.input, **(webhook if request.webhook_url else {})}
        response = client.send(f"{self._api_url}{model.submit_path()}", fields, webhook_url=request.webhook_url)
        with json_fields.translate_malformed(SubmitUncertain, "Replicate accepted a submission without an id"):
            external_id = json_fields.require_id(response.fields.get("id"), "id")
        if response.fields.get("webhook") != request.webhook_url:  # dropped silently in replicate-javascript #321
            log.warning("submit.webhook_not_echoed", provider=self.name, external_id=external_id)
        return SubmitResult(external_id)

    def cancel(self, external_id: str, model: str | None = None) -> None:  # noqa: ARG002 (the id is enough here)
        api = self._require(self._api)
        url = f"{self._api_url}/v1/predictions/{endpoints.quote_path_segment(external_id)}/cancel"
        api.request(url, statuses=(200, 201, 202, *_ENDED), method="POST")

    def describe_models(self, kind: str) -> list[dict[str, Any]]:
        """Return the models in REPLICATE_MODELS that exist, described by their schemas."""
        models = replicate_models.describe_models(self._require(self._api), self._api_url, self.models)
        return [model for model in models if model["kind"] == kind]

    def get_input_schema(self, model: str) -> Mapping[str, Any] | None:
        if self._api is None:
            return None
        return replicate_models.get_input_schema(self._api, self._api_url, replicate_models.ModelName.parse(model))
