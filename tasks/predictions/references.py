"""
File references in a job's input: `{"upload": id}` and `{"variant": "render_id/idx"}`, at any depth.

They are replaced by presigned URLs, or by the files, when the prediction is submitted: no URL expires while it waits.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from db import uploads
from db.connection import Connection, Row
from moorage.errors import Category, Permanent
from moorage.provider_types import InputFile

if TYPE_CHECKING:
    from tasks.step import Deps  # not loaded at run time: the API uses this module and must not load boto3

PROVIDER_URL_SECONDS: Final = 600  # validity of presigned URLs for providers
MAX_FILE_BYTES: Final = 64 * 2**20  # of the files in one submission, which are in memory
_KINDS: Final = ("upload", "variant")
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UPLOAD: Final = re.compile(f"({_UUID})", re.IGNORECASE)
_VARIANT: Final = re.compile(f"({_UUID})/(0|[1-9][0-9]{{0,8}})", re.IGNORECASE)
_FORM: Final = {"upload": "the id of an upload", "variant": '"render_id/idx"'}


class ReferenceGone(Permanent):
    """A job's input refers to a file that does not exist, is deleted or belongs to another owner."""

    category: Category = "VALIDATION_FAILED"


@dataclass(frozen=True, slots=True)
class Reference:
    """A file reference in a job's input."""

    path: str  # its position in the input, for example "images[0]"
    kind: Literal["upload", "variant"]
    file_id: UUID  # of the upload or of the render
    idx: int | None = None  # of the variant

    @property
    def label(self) -> str:
        return f"{self.kind} {self.file_id}" + ("" if self.idx is None else f"/{self.idx}")


def find_references(value: Any) -> list[Reference]:
    """Return all references in document order. Raises ReferenceGone with path and problem of a malformed one."""
    return [_parse(path, item) for path, item in _walk(value, "")]


def find_missing(conn: Connection, owner: str, references: Sequence[Reference]) -> list[Reference]:
    """Return the references to files that do not exist, are deleted or belong to another owner."""
    rows = _load_rows(conn, owner, references)
    return [reference for reference in references if reference.label not in rows]


def resolve_references(deps: "Deps", owner: str, value: Any, file_fields: Collection[str] = ()) -> Any:
    """
    Replace every reference by a URL that is valid for ten minutes, in the `file_fields` of an input by an InputFile.

    Raises ReferenceGone for missing files, which it names, and for files that are too large; StorageUnavailable.
    """
    references = find_references(value)
    if not references:
        return value
    rows = deps.database.run(lambda conn: _load_rows(conn, owner, references))
    gone = [f"{reference.label} ({reference.path})" for reference in references if reference.label not in rows]
    if gone:
        raise ReferenceGone(f"the input refers to missing files: {', '.join(gone)}"[:1000])
    urls = {reference.label: _presign(deps, reference, rows[reference.label]) for reference in references}
    sent = [reference for reference in references if re.split(r"[.\[]", reference.path)[0] in file_fields]
    if not sent:
        return substitute_urls(value, urls)
    size = sum(rows[reference.label]["bytes"] for reference in sent)
    if size > MAX_FILE_BYTES:
        raise ReferenceGone(f"the input files have {size} bytes together, more than {MAX_FILE_BYTES}")
    files = {reference.label: _read_file(deps, reference, rows[reference.label]) for reference in sent}
    return {name: substitute_urls(item, files if name in file_fields else urls) for name, item in value.items()}


def substitute_urls(value: Any, urls: Mapping[str, Any]) -> Any:
    """Return the value with each reference replaced by its URL; `urls` is keyed by `Reference.label`."""
    if _is_reference(value):
        return urls[_parse("", value).label]
    if isinstance(value, dict):
        return {name: substitute_urls(item, urls) for name, item in value.items()}
    return [substitute_urls(item, urls) for item in value] if isinstance(value, list) else value


def _load_rows(conn: Connection, owner: str, references: Sequence[Reference]) -> dict[str, Row]:
    files = [reference.file_id for reference in references if reference.idx is None]
    variants = sorted({(reference.file_id, reference.idx) for reference in references if reference.idx is not None})
    rows = {f"upload {row['id']}": row for row in (uploads.list_by_owner(conn, owner, files) if files else ())}
    renders, idxs = [render_id for render_id, _ in variants], [idx for _, idx in variants]
    for row in uploads.list_variants_by_owner(conn, owner, renders, idxs) if variants else ():
        rows[f"variant {row['render_id']}/{row['idx']}"] = row
    return rows


def _presign(deps: "Deps", reference: Reference, row: Row) -> str:
    return deps.storage.presign_get(_find_bucket(deps, reference), row["key"], PROVIDER_URL_SECONDS)


def _read_file(deps: "Deps", reference: Reference, row: Row) -> InputFile:
    with deps.storage.open_object(_find_bucket(deps, reference), row["key"]) as reader:
        return InputFile(f"{row['media']}.{row['format']}", f"{row['media']}/{row['format']}", reader.read())


def _find_bucket(deps: "Deps", reference: Reference) -> str:
    return deps.storage.private_bucket if reference.kind == "upload" else deps.storage.public_bucket


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _KINDS


def _walk(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if _is_reference(value):
        yield path, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{path}[{number}]")


def _parse(path: str, value: dict[str, Any]) -> Reference:
    ((kind, text),) = value.items()
    match = (_UPLOAD if kind == "upload" else _VARIANT).fullmatch(text) if isinstance(text, str) else None
    if match is None:
        problem = f"an object with the single key {kind!r} must contain {_FORM[kind]}"
        raise ReferenceGone(f"{path}: {problem}"[:1000], facts={"path": path, "problem": problem})
    if kind == "upload":
        return Reference(path, "upload", UUID(match[1]))
    return Reference(path, "variant", UUID(match[1]), int(match[2]))
