"""Files whose bytes are in a report: stored in the private bucket before a transaction names them."""

import hashlib
from dataclasses import replace
from typing import Any

from moorage import ids, logs
from moorage.errors import ObjectRefused, StorageRefused, StorageUnavailable
from moorage.provider_types import OutputFile, PredictionReport
from storage import keys
from tasks.step import Deps

log = logs.get_logger(__name__)


def upload_files(deps: Deps, report: PredictionReport) -> PredictionReport:
    """Return the report with keys of objects in place of bytes, but with the bytes that storage does not accept now."""
    return replace(report, outputs=tuple(_upload(deps, file) for file in report.outputs))


def _upload(deps: Deps, file: OutputFile) -> OutputFile:
    if not file.data or file.problem is not None:
        return file
    key, sha256 = keys.build_input_key(ids.uuid7(), "bin"), hashlib.sha256(file.data).hexdigest()
    facts: dict[str, Any] = {"size": len(file.data), "sha256": sha256, "content_type": "application/octet-stream"}
    try:
        deps.storage.put(deps.storage.private_bucket, key, file.data, **facts)
    except (StorageUnavailable, StorageRefused, ObjectRefused) as error:  # PostgreSQL has room for a while
        log.warning("inline.not_uploaded", path=file.path, error=str(error))
        return file
    return replace(file, data=None, object_key=key)
