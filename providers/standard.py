"""
Any sender of plain Standard Webhooks: a signed `{"type", "timestamp", "data"}`; nothing to poll.

The specification does not define `data`. Read from it: the id, the first of `id`, `prediction_id`, `request_id`,
`job_id`, `task_id`; the status, from `data.status`, else from the end of `type` ("image.completed"); the files, from
all of `data`.
"""

from typing import Any, Final

from moorage.errors import MalformedPayload
from moorage.provider_types import PredictionReport, PredictionStatus
from moorage.settings import Settings
from moorage.urls import HostAllowlist
from providers import json_fields, webhook_signing
from providers.base import Provider
from providers.jwks import KeySet
from providers.signature_verifiers import STANDARD_HEADERS, SVIX_HEADERS, StandardVerifier

_ID_FIELDS: Final = ("id", "prediction_id", "request_id", "job_id", "task_id")
_STATUS_WORDS: Final[dict[PredictionStatus, tuple[str, ...]]] = {
    "queued": ("queued", "in_queue", "pending", "created", "starting", "submitted"),
    "running": ("running", "processing", "in_progress", "started", "progress"),
    "succeeded": ("succeeded", "success", "completed", "complete", "ready", "done", "finished", "generated", "ok"),
    "failed": ("failed", "fail", "failure", "error", "errored", "expired", "incomplete", "timed_out"),
    "cancelled": ("cancelled", "canceled", "aborted"),
}
_STATUSES: Final[dict[str, PredictionStatus]] = {
    word: status for status, words in _STATUS_WORDS.items() for word in words
}


class Standard(Provider):
    """A generic sender; Svix's names of the three headers are accepted, and public keys (`v1a`)."""

    name = "standard"
    hosts_setting, webhook_setting = "STANDARD_OUTPUT_HOSTS", "STANDARD_WEBHOOK_SECRET"
    recorded_headers = Provider.recorded_headers | {"webhook-id", "webhook-timestamp", "svix-id", "svix-timestamp"}

    def __init__(self, settings: Settings) -> None:
        secrets, keys = webhook_signing.split_standard_keys(settings.standard_webhook_secret, self.webhook_setting)
        key_set = KeySet("the public keys in STANDARD_WEBHOOK_SECRET", fixed=keys) if keys else None
        hosts = HostAllowlist(settings.standard_output_hosts, settings.egress_allow, setting=self.hosts_setting)
        verifier = StandardVerifier(secrets, key_set, names=[STANDARD_HEADERS, SVIX_HEADERS])
        super().__init__(settings, hosts=hosts, verifier=verifier)

    def parse_report(self, body: bytes) -> PredictionReport:
        event = json_fields.parse_json_object(body)
        data = event.get("data")
        if not isinstance(data, dict):
            raise MalformedPayload("data is missing or not an object")
        raw_status = _parse_raw_status(event, data)
        status = _STATUSES.get(raw_status.lower(), "unknown")
        files = self.extract_files(data if status == "succeeded" else None, "data")
        return PredictionReport(
            external_id=_external_id(data),
            status=status,
            raw_status=raw_status,
            outputs=files.outputs,
            mentions=files.mentions,
            error=json_fields.optional_text(data.get("error")),
            completed_at=json_fields.optional_datetime(data.get("completed_at")),
            expires_at=json_fields.optional_datetime(data.get("expires_at")),
            model=json_fields.optional_model(data),
        )


def _parse_raw_status(event: dict[str, Any], data: dict[str, Any]) -> str:
    if data.get("status") is not None:
        return json_fields.require_text(data["status"], "data.status")
    kind = event.get("type")
    suffix = kind.rpartition(".")[2] if isinstance(kind, str) else None
    return json_fields.require_text(suffix, "data.status is missing, and the end of type")


def _external_id(data: dict[str, Any]) -> str:
    for field in _ID_FIELDS:
        if data.get(field) is not None:
            return json_fields.require_id(data[field], f"data.{field}")
    raise MalformedPayload(f"data has no id: none of {', '.join(_ID_FIELDS)}")
