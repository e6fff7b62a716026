"""
Any sender of plain Standard Webhooks: a signed `{"type", "timestamp", "data"}`; nothing to poll.

The specification leaves `data` open. What is read of it: the id from the first of `id`, `prediction_id`, `request_id`,
`job_id`, `task_id`; the status from `data.status`, else from the end of `type` ("image.completed"); the files from
`data.output`, else `data.outputs`, else all of `data`.
"""

from typing import Any, ClassVar, Final

from moorage.errors import Unreadable
from moorage.provider_types import Found, Report, Status, Verified
from moorage.settings import Settings
from moorage.text import storable
from moorage.urls import Hosts
from providers import json_fields, output_files, signatures
from providers.base import Provider
from providers.signatures import Headers

_ID_FIELDS: Final = ("id", "prediction_id", "request_id", "job_id", "task_id")
_OUTPUT_FIELDS: Final = ("output", "outputs")
_WORDS: Final[dict[Status, tuple[str, ...]]] = {
    "queued": ("queued", "in_queue", "pending", "created", "starting", "submitted"),
    "running": ("running", "processing", "in_progress", "started", "progress"),
    "succeeded": ("succeeded", "success", "completed", "complete", "ready", "done", "finished", "generated", "ok"),
    "failed": ("failed", "fail", "failure", "error", "errored", "expired", "incomplete", "timed_out"),
    "cancelled": ("cancelled", "canceled", "aborted"),
}
_STATUSES: Final[dict[str, Status]] = {word: status for status, words in _WORDS.items() for word in words}


class Standard(Provider):
    """A sender without a name of its own; Svix's names for the three headers are taken as well."""

    name = "standard"
    enabled_by = "STANDARD_WEBHOOK_SECRET"
    kept_headers: ClassVar[frozenset[str]] = Provider.kept_headers | {
        "webhook-id",
        "webhook-timestamp",
        "svix-id",
        "svix-timestamp",
    }

    def __init__(self, settings: Settings) -> None:
        secrets = signatures.standard_secrets(settings.standard_webhook_secret, "STANDARD_WEBHOOK_SECRET")
        hosts = Hosts(settings.standard_output_hosts, settings.egress_allow, setting="STANDARD_OUTPUT_HOSTS")
        super().__init__(settings, hosts=hosts, secrets=secrets)

    def _verify(self, headers: Headers, body: bytes, now: float) -> Verified:
        prefixes = ("webhook-", "svix-")
        return Verified(signatures.standard_v1(headers, body, now, secrets=self._secrets, prefixes=prefixes))

    def parse(self, body: bytes) -> Report:
        """
        Return what an event says of its prediction.

        Raises:
            Unreadable: it is not the shape above.
        """
        event = json_fields.json_object(body)
        data = event.get("data")
        if not isinstance(data, dict):
            raise Unreadable("data is missing or is no object")
        raw_status = _raw_status(event, data)
        status = _STATUSES.get(raw_status.lower(), "unknown")
        model = data.get("model")
        return Report(
            external_id=_external_id(data),
            status=status,
            raw_status=raw_status,
            outputs=self._outputs(data) if status == "succeeded" else (),
            error=json_fields.text_or_none(data.get("error")),
            completed_at=json_fields.moment_or_none(data.get("completed_at")),
            expires_at=json_fields.moment_or_none(data.get("expires_at")),
            model=storable(model, 200) if isinstance(model, str) and model else None,
        )

    def _outputs(self, data: dict[str, Any]) -> tuple[Found, ...]:
        for field in _OUTPUT_FIELDS:
            if field in data:
                return output_files.found(data[field], f"data.{field}", self.allows)
        return output_files.found(data, "data", self.allows)


def _raw_status(event: dict[str, Any], data: dict[str, Any]) -> str:
    if data.get("status") is not None:
        return json_fields.word(data["status"], "data.status")
    kind = event.get("type")
    suffix = kind.rpartition(".")[2] if isinstance(kind, str) else None
    return json_fields.word(suffix, "data.status is missing, and the end of type")


def _external_id(data: dict[str, Any]) -> str:
    for field in _ID_FIELDS:
        if data.get(field) is not None:
            return json_fields.external_id(data[field], f"data.{field}")
    raise Unreadable(f"data names no prediction: none of {', '.join(_ID_FIELDS)} is there")
