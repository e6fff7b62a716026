"""The body of a job request, with files: a form whose field `job` references them as `{"file": "name"}`."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from moorage import ids
from web.http import json_body, validation
from web.http.validation import field_error
from web.services.multipart import Form
from web.services.upload_spool import SpooledFile, UploadSpool

JOB_FIELD: Final = "job"
MAX_FILES: Final = 8


@dataclass(frozen=True, slots=True)
class JobBody:
    sent: dict[str, Any]  # as received, for the hash of the request
    resolved: dict[str, Any]  # with each `{"file": name}` replaced by `{"upload": id}`
    files: Mapping[UUID, SpooledFile] = field(default_factory=dict)  # by the id of the upload they become

    async def compute_sha256(self) -> str:
        """Return the hash of the body and the files; independent of white space and the order of names."""
        digests = [await _hash_file(file) for file in self.files.values()]
        text = json.dumps([self.sent, digests], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    async def store_files(self, spool: UploadSpool, owner: str) -> None:
        """Store every file as an upload; raises as `UploadSpool.store` does. Files stored before an error remain."""
        for upload_id, file in self.files.items():
            await spool.store(file, owner, upload_id)


def parse_job_form(form: Form) -> JobBody:
    """Return the job in a form with its files. Raises Problem: 400 not JSON, 422 files and references differ."""
    if JOB_FIELD not in form.fields:
        raise validation.invalid_field(JOB_FIELD, "is required: the job as JSON")
    body = json_body.parse_object(form.fields[JOB_FIELD].encode())
    json_body.check_depth(body, JOB_FIELD)
    names = [name for name, _ in form.files]
    upload_ids = {name: ids.uuid7() for name in names}
    used: set[str] = set()
    resolved = _resolve_files(body, upload_ids, used)
    errors = [field_error(name, "is not a field of the form") for name in form.fields if name != JOB_FIELD]
    errors += [field_error(name, "is given more than once") for name in upload_ids if names.count(name) > 1]
    errors += [
        field_error(name, f'is not referenced: write {{"file": "{name}"}} in the input')
        for name in upload_ids.keys() - used
    ]
    errors += [
        field_error(JOB_FIELD, f"references the file {name!r}, which is not in the form")
        for name in used - upload_ids.keys()
    ]
    validation.raise_errors(errors)
    return JobBody(body, resolved, {upload_ids[name]: file for name, file in form.files})


def _resolve_files(value: Any, upload_ids: Mapping[str, UUID], used: set[str]) -> Any:
    """Return the value with `{"upload": id}` for each `{"file": name}`; adds the names to `used`."""
    if isinstance(value, dict):
        name = value.get("file") if len(value) == 1 else None
        if isinstance(name, str):
            used.add(name)
            return {"upload": str(upload_ids[name])} if name in upload_ids else value
        return {key: _resolve_files(item, upload_ids, used) for key, item in value.items()}
    return [_resolve_files(item, upload_ids, used) for item in value] if isinstance(value, list) else value


async def _hash_file(spooled: SpooledFile) -> str:
    await spooled.flush()

    def compute() -> str:
        spooled.file.seek(0)
        return hashlib.file_digest(spooled.file, "sha256").hexdigest()  # type: ignore[arg-type]

    return await asyncio.to_thread(compute)
