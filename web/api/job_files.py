"""Files sent along with an order: a form with the field `job`, whose input names them as `{"file": "name"}`."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moorage import ids
from moorage.model import JobRequest
from web.http import json_body, validation
from web.http.validation import field_error
from web.services.context import AppContext
from web.services.multipart import Form
from web.services.upload_spool import SpooledFile

JOB_FIELD: Final = "job"
MAX_FILES: Final = 8
_MAX_DEPTH: Final = 64  # of the whole job; an input in it may be less deep
_CHUNK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class AttachedFiles:
    """Files by the id under which the order names them until they are kept and have ids of their own."""

    files: Mapping[str, SpooledFile] = field(default_factory=dict)

    async def compute_digests(self) -> list[str]:
        """Return the sha256 of each file: of an equal order they are equal."""
        return [await _compute_sha256(file) for file in self.files.values()]

    async def store(self, at: AppContext, wish: JobRequest) -> JobRequest:
        """
        Keep every file as an upload of the order's owner; returns the order with their ids.

        Raises:
            Problem: 422 a file is not taken, 503 storage or PostgreSQL is away. Files kept before it stay uploads.
        """
        kept = {}
        for standing, file in self.files.items():
            upload, _ = await at.upload_spool.store(at.database, file, wish.owner)
            kept[standing] = {"upload": str(upload.id)}
        chain = tuple(
            dataclasses.replace(e, input=_swapped(dict(e.input), "upload", kept)) for e in wish.fallback_chain
        )
        return dataclasses.replace(wish, fallback_chain=chain)


def parse_job_form(form: Form) -> tuple[dict[str, Any], dict[str, Any], AttachedFiles]:
    """
    Return the job of a form as it was written, the same with a reference for each file, and the files.

    Raises:
        Problem: 400 the job is not JSON; 422 there is none, a file that it does not name, or a name without a file.
    """
    if JOB_FIELD not in form.fields:
        raise validation.invalid_field(JOB_FIELD, "is missing: send the job as JSON in this field of the form")
    body = json_body.parse_object(form.fields[JOB_FIELD])
    if validation.is_nested_deeper(body, _MAX_DEPTH):
        raise validation.invalid_field(JOB_FIELD, f"is nested more than {_MAX_DEPTH} deep")
    names = [name for name, _ in form.files]
    named = set(_named(body))
    errors = [
        field_error(name, "is no field of the form: send the job in `job`") for name in form.fields if name != JOB_FIELD
    ]
    errors += [
        field_error(name, "stands for two files: name each once") for name in {n for n in names if names.count(n) > 1}
    ]
    errors += [
        field_error(name, f'is not used: write {{"file": "{name}"}} in the input') for name in set(names) - named
    ]
    errors += [
        field_error(JOB_FIELD, f"names the file {name!r}, which is not in the form") for name in named - set(names)
    ]
    if errors:
        raise validation.invalid_fields(errors)
    standing = {name: str(ids.uuid7()) for name in names}
    swaps = {name: {"upload": stand_in} for name, stand_in in standing.items()}
    return body, _swapped(body, "file", swaps), AttachedFiles({standing[name]: file for name, file in form.files})


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if (name := _name(value, "file")) is not None:
            yield name
        else:
            for item in value.values():
                yield from _named(item)
    elif isinstance(value, list):
        for item in value:
            yield from _named(item)


def _swapped(value: Any, kind: str, by: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        name = _name(value, kind)
        return (
            by[name]
            if name is not None and name in by
            else {key: _swapped(item, kind, by) for key, item in value.items()}
        )
    return [_swapped(item, kind, by) for item in value] if isinstance(value, list) else value


def _name(value: Mapping[str, Any], kind: str) -> str | None:
    name = value.get(kind) if len(value) == 1 else None
    return name if isinstance(name, str) else None


async def _compute_sha256(incoming: SpooledFile) -> str:
    await incoming.flush()

    def digest() -> str:
        incoming.file.seek(0)
        made = hashlib.sha256()
        while chunk := incoming.file.read(_CHUNK_BYTES):
            made.update(chunk)
        return made.hexdigest()

    return await asyncio.to_thread(digest)
