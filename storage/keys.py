"""
Object keys. A key identifies the bytes and the attempt that stored them, so two attempts never share one.

Lease tokens are random (UUIDv4): the first 8 digits of a UUIDv7 are the same for a minute.
"""

import re
from dataclasses import dataclass
from hashlib import sha256 as digest
from typing import Final
from urllib.parse import quote
from uuid import UUID

RENDER_PREFIX: Final = "renders/"
INPUT_PREFIX: Final = "inputs/"
QUARANTINE_PREFIX: Final = "quarantine/"

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_EXTENSION: Final = "[a-z0-9]{1,8}"
_RENDER: Final = re.compile(
    rf"renders/(?P<render>{_UUID})/(?P<idx>0|[1-9][0-9]{{0,8}})-(?P<sha>[0-9a-f]{{16}})-(?P<token>[0-9a-f]{{8}})"
    rf"(?:(?P<thumb>_thumb\.webp)|\.(?P<extension>{_EXTENSION}))"
)
_INPUT: Final = re.compile(rf"inputs/(?P<upload>{_UUID})\.(?P<extension>{_EXTENSION})")
# Reserved prefixes: an owner with such a name must not produce keys of another kind.
_RESERVED: Final = frozenset({"renders", "inputs", "quarantine"})
_MAX_OWNER: Final = 200  # below the limits of 1,024 bytes for a key and 255 for a file name
_UPLOAD: Final = re.compile(
    rf"(?!(?:renders|inputs|quarantine)/)(?P<owner>[A-Za-z0-9_.~%-]{{1,{_MAX_OWNER}}})/inputs/(?P<upload>{_UUID})"
    rf"\.(?P<extension>{_EXTENSION})"
)


@dataclass(frozen=True, slots=True)
class RenderKey:
    render_id: UUID
    idx: int
    sha256_start: str  # the first 16 hex digits, of the original's bytes also in a thumbnail's key
    token_start: str  # the first 8 hex digits of the lease token that stored it
    extension: str
    is_thumbnail: bool


@dataclass(frozen=True, slots=True)
class InputKey:
    upload_id: UUID
    extension: str


@dataclass(frozen=True, slots=True)
class UploadKey:
    """The parts of the key of an upload; `owner` as encoded in the key."""

    owner: str
    upload_id: UUID
    extension: str


def build_original_key(render_id: UUID, idx: int, sha256: str, token: UUID, extension: str) -> str:
    """Return the key of a kept file: `renders/{render_id}/{idx}-{sha256[:16]}-{token[:8]}.{extension}`."""
    return f"{_render_stem(render_id, idx, sha256, token)}.{extension}"


def build_thumbnail_key(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    """Return the key of the thumbnail next to the original; `sha256` is the original's."""
    return f"{_render_stem(render_id, idx, sha256, token)}_thumb.webp"


def build_input_key(upload_id: UUID, extension: str) -> str:
    return f"{INPUT_PREFIX}{upload_id}.{extension}"


def build_upload_key(owner: str, upload_id: UUID, extension: str) -> str:
    """Return the key of an upload in the private bucket: `{owner}/inputs/{upload_id}.{extension}`."""
    return f"{build_upload_prefix(owner)}{upload_id}.{extension}"


def build_upload_prefix(owner: str) -> str:
    """Return what the keys of an owner's uploads begin with: it is percent-encoded, or its digest if too long."""
    encoded = quote(owner, safe="")
    if encoded in _RESERVED or not encoded.strip("."):  # "." and ".." are not valid segments
        encoded = f"%{ord(encoded[0]):02X}{encoded[1:]}"
    if len(encoded) > _MAX_OWNER:
        encoded = f"sha256-{digest(owner.encode()).hexdigest()}"
    return f"{encoded}/inputs/"


def build_quarantine_key(key: str) -> str:
    """Return the key of an orphan in quarantine."""
    return f"{QUARANTINE_PREFIX}{key}"


def build_refused_key(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    """Return the key of a refused file: `quarantine/renders/{render_id}/{idx}-{sha256[:16]}-{token[:8]}.bin`."""
    return build_quarantine_key(build_original_key(render_id, idx, sha256, token, "bin"))


def parse_key(key: str) -> RenderKey | InputKey | UploadKey | None:
    if match := _RENDER.fullmatch(key):
        return RenderKey(
            render_id=UUID(match["render"]),
            idx=int(match["idx"]),
            sha256_start=match["sha"],
            token_start=match["token"],
            extension=match["extension"] or "webp",
            is_thumbnail=match["thumb"] is not None,
        )
    if match := _INPUT.fullmatch(key):
        return InputKey(UUID(match["upload"]), match["extension"])
    if match := _UPLOAD.fullmatch(key):
        return UploadKey(match["owner"], UUID(match["upload"]), match["extension"])
    return None


def _render_stem(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    return f"{RENDER_PREFIX}{render_id}/{idx}-{sha256[:16]}-{token.hex[:8]}"
