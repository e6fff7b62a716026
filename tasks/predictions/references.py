"""
References to files of ours in a job's input: `{"upload": id}` and `{"variant": "render_id/idx"}`, anywhere in it.

They become addresses when the job is submitted, so that an address never waits longer than it lives.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

from db import uploads
from db.connection import Connection, Row
from moorage.errors import Category, Permanent

if TYPE_CHECKING:
    from tasks.step import Deps  # not loaded: the API reads references too, and needs no boto3

PROVIDER_URL_SECONDS: Final = 600  # so long an address that a provider is given is good
_KINDS: Final = ("upload", "variant")
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UPLOAD: Final = re.compile(f"({_UUID})", re.IGNORECASE)
_VARIANT: Final = re.compile(f"({_UUID})/(0|[1-9][0-9]{{0,8}})", re.IGNORECASE)
_FORM: Final = {"upload": "the id of an upload", "variant": '"render_id/idx"'}


class ReferenceGone(Permanent):
    """A job's input names a file that is not its owner's, is deleted, or never was."""

    category: Category = "VALIDATION_FAILED"


@dataclass(frozen=True, slots=True)
class Reference:
    """
    A file of ours that an input names.

    Args:
        place: where it stands: "images[0]".
        file_id: of the upload, or of the render.
        idx: of the variant.
    """

    path: str
    kind: Literal["upload", "variant"]
    file_id: UUID
    idx: int | None = None

    @property
    def label(self) -> str:
        """Return what names the file: "upload 0199..." or "variant 0199.../0"."""
        return f"{self.kind} {self.file_id}" + ("" if self.idx is None else f"/{self.idx}")


def find_references(value: Any) -> list[Reference]:
    """
    Return every reference in a value of JSON, in its order.

    Raises:
        ReferenceGone: one that cannot name anything; the message begins with its place.
    """
    return [_read(place, found) for place, found in _walk(value, "")]


def find_missing(conn: Connection, owner: str, references: Sequence[Reference]) -> list[Reference]:
    """Return those references that name nothing which the owner may use now."""
    keys = _rows(conn, owner, references)
    return [reference for reference in references if reference.label not in keys]


def resolve_references(deps: "Deps", owner: str, value: Any) -> Any:
    """
    Return the value with every reference replaced by an address that anyone can read for ten minutes.

    Raises:
        ReferenceGone: files that the owner does not have, or no longer; the message names each.
        DatabaseUnavailable: PostgreSQL did not answer.
    """
    references = find_references(value)
    if not references:
        return value
    rows = deps.database.run(lambda conn: _rows(conn, owner, references))
    gone = [reference for reference in references if reference.label not in rows]
    if gone:
        told = ", ".join(f"{reference.label} ({reference.path})" for reference in gone)
        raise ReferenceGone(f"the input names what is not there (any more): {told}"[:1000])
    urls = {reference.label: _url(deps, reference, rows[reference.label]) for reference in references}
    return substitute_urls(value, urls)


def substitute_urls(value: Any, urls: Mapping[str, str]) -> Any:
    """Return the value with the address of each reference, by `Reference.text`, in its place."""
    if _is_reference(value):
        return urls[_read("", value).label]
    if isinstance(value, dict):
        return {name: substitute_urls(item, urls) for name, item in value.items()}
    return [substitute_urls(item, urls) for item in value] if isinstance(value, list) else value


def _rows(conn: Connection, owner: str, references: Sequence[Reference]) -> dict[str, Row]:
    files = [reference.file_id for reference in references if reference.idx is None]
    variants = {(reference.file_id, reference.idx) for reference in references if reference.idx is not None}
    rows = {f"upload {row['id']}": row for row in (uploads.list_by_owner(conn, owner, files) if files else ())}
    for row in uploads.list_variants_by_owner(conn, owner, sorted(variants)) if variants else ():
        rows[f"variant {row['render_id']}/{row['idx']}"] = row
    return rows


def _url(deps: "Deps", reference: Reference, row: Row) -> str:
    blobs = deps.storage
    bucket = blobs.private_bucket if reference.kind == "upload" else blobs.public_bucket
    return blobs.presign_get(bucket, row["key"], PROVIDER_URL_SECONDS)


def _is_reference(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _KINDS


def _walk(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if _is_reference(value):
        yield place, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{place}[{number}]")


def _read(place: str, value: dict[str, Any]) -> Reference:
    ((kind, text),) = value.items()
    match = (_UPLOAD if kind == "upload" else _VARIANT).fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ReferenceGone(f"{place}: {kind!r} stands alone in an object: write {_FORM[kind]} after it"[:1000])
    if kind == "upload":
        return Reference(place, "upload", UUID(match[1]))
    return Reference(place, "variant", UUID(match[1]), int(match[2]))
