"""
What each level sees of events, reasons, actors and texts: from level application on everything, an owner little of it.

An owner's page is no place for the names of our servers and workers, nor for texts that may repeat a secret.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

from pydantic import SecretStr

from db.connection import Row
from moorage.settings import Settings
from web.http.permissions import Level

HIDDEN_SUBJECTS: Final = ("delivery", "notification", "dead_letter")
HIDDEN_KINDS: Final = ("worker_died", "lease_expired", "worker_stopping", "storage_failed", "disk_failed")
_LIVE_STATES: Final = ("waiting", "discarding", "planned", "submitting", "running", "abandoned", "open", "keeping")
_PARTIAL: Final = "not every file could be generated or kept"
# In place of a reason, by category: its text is for operators ("Top up at fal.ai", "CUDA out of memory").
OWNER_SENTENCES: Final[Mapping[str, str]] = {
    "DOWNLOAD_FAILED": "a file could not be fetched from the provider",
    "VALIDATION_FAILED": "a file is missing, damaged or of a kind that is not accepted",
    "STORAGE_FAILED": "the file could not be stored",
    "DATABASE_FAILED": "the work could not be recorded",
    "PROVIDER_FAILED": "the provider could not create this",
    "BILLING_FAILED": "the provider did not accept the request",
    "TIMED_OUT": "the provider did not respond in time",
    "FOREIGN_HOST": "the file is on a host that is not the provider's",
    "POISON": "the work failed repeatedly",
    "INTERNAL": "the work failed",
    "NOTIFY_FAILED": "the work failed",
    "UNKNOWN_PREDICTION": "the prediction is not known",
}
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*://)(?:[^/?#\s]*@)?([^/?#\s\"'<>)]*)[^\s\"'<>)]*", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b|\[?\b[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,7}\b\]?", re.I
)
_MIN_CHARS: Final = 8  # a shorter part of a URL could occur in ordinary text
# Their values are in every URL of a file, or are names of public services.
_PUBLIC_SETTINGS: Final = ("public_url", "asset_base_url", "s3_public_endpoint_url")


def list_hidden_events(level: Level) -> dict[str, list[str]]:
    """Return the subjects and kinds of events that a level does not see."""
    sees_all = level >= Level.APPLICATION
    return {"subjects": [], "kinds": []} if sees_all else {"subjects": [*HIDDEN_SUBJECTS], "kinds": [*HIDDEN_KINDS]}


def filter_event(level: Level, row: Row) -> Row | None:
    """Return what a level sees of an event, None if nothing: owners see neither reason nor actor."""
    hidden = list_hidden_events(level)
    if row["subject"] in hidden["subjects"] or row["kind"] in hidden["kinds"]:
        return None
    values = {} if level >= Level.APPLICATION else {"reason": None, "actor": "moorage"}
    return {name: values.get(name, value) for name, value in row.items() if name != "kind"}


class VisibilityPolicy:
    """The one rule for responses, history, stream and page."""

    def __init__(self, settings: Settings) -> None:
        self._hidden = sorted(set(_list_hidden_texts(settings)), key=len, reverse=True)

    def show_reason(self, level: Level, state: str, category: str | None, reason: str | None) -> str | None:
        """Return why a job, prediction or output ended, or is retried: owners see that only once it has ended."""
        if level >= Level.APPLICATION or reason is None:
            return reason
        if state in _LIVE_STATES:
            return None
        sentence = _PARTIAL if state == "partial" else OWNER_SENTENCES.get(category or "")
        return sentence or self.show_text(level, reason)

    def filter_reason(self, level: Level, row: Row) -> Row:
        """Return a row that has `state`, `category` and `reason`, with the reason that the level sees."""
        reason = self.show_reason(level, row["state"], row["category"], row["reason"])
        return {**row, "reason": reason}

    def show_text(self, level: Level, text: str) -> str:
        """Return a text for owners without URLs' paths, addresses, and parts of secret settings."""
        if level >= Level.APPLICATION:
            return text
        shown = _URL.sub(r"\1\2", text)
        for hidden in self._hidden:
            shown = shown.replace(hidden, "(hidden)")
        return _ADDRESS.sub("(address)", shown)


def _list_hidden_texts(settings: Settings) -> Iterator[str]:
    """Yield the values of secret settings, and of URLs also each part: host, user, password, path, query."""
    for name, value in settings:
        if value == Settings.model_fields[name].default:
            continue  # the public address of a provider's API
        for item in value if isinstance(value, tuple) else (value,):
            text = item.get_secret_value() if isinstance(item, SecretStr) else str(item or "")
            if name.endswith(("_url", "_urls")) and name not in _PUBLIC_SETTINGS:
                yield from _split_url(text)
            elif isinstance(item, SecretStr) or name == "aws_access_key_id":
                yield from _filter_long(text, text.removeprefix("whsec_"))


def _split_url(url: str) -> Iterator[str]:
    parts = [url, *re.split("[/?&=#@:]+", url)]
    yield from _filter_long(*parts, *map(unquote, parts))


def _filter_long(*texts: str) -> Iterator[str]:
    return (text for text in texts if len(text) >= _MIN_CHARS)
