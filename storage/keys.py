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
_EXTENSION: Final = r"\.[a-z0-9]{1,8}"
_RENDER: Final = re.compile(
    rf"renders/(?P<render>{_UUID})/(?P<idx>0|[1-9][0-9]{{0,8}})-[0-9a-f]{{16}}-(?P<token>[0-9a-f]{{8}})"
    rf"(?:_thumb\.webp|{_EXTENSION})"
)
_INPUT: Final = re.compile(rf"inputs/{_UUID}{_EXTENSION}")
# Reserved prefixes: an owner with such a name must not produce keys of another kind.
_RESERVED: Final = frozenset({"renders", "inputs", "quarantine"})
_MAX_OWNER: Final = 200  # below the limits of 1,024 bytes for a key and 255 for a file name
_UPLOAD: Final = re.compile(
    rf"(?!(?:renders|inputs|quarantine)/)[A-Za-z0-9_.~%-]{{1,{_MAX_OWNER}}}/inputs/{_UUID}{_EXTENSION}"
)


@dataclass(frozen=True, slots=True)
class RenderKey:
    """The parts of the key of a kept file or its thumbnail; the first 8 hex digits of the token that stored it."""

    render_id: UUID
    idx: int
    token_start: str


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
    return f"{QUARANTINE_PREFIX}{key}"


def build_refused_key(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    """Return the key of a refused file: `quarantine/renders/{render_id}/{idx}-{sha256[:16]}-{token[:8]}.bin`."""
    return build_quarantine_key(build_original_key(render_id, idx, sha256, token, "bin"))


def parse_render_key(key: str) -> RenderKey | None:
    match = _RENDER.fullmatch(key)
    return RenderKey(UUID(match["render"]), int(match["idx"]), match["token"]) if match else None


def is_upload_key(key: str) -> bool:
    return _UPLOAD.fullmatch(key) is not None


def is_known_key(key: str) -> bool:
    """Return whether moorage builds such keys, apart from those in quarantine."""
    return any(pattern.fullmatch(key) for pattern in (_RENDER, _INPUT, _UPLOAD))


def _render_stem(render_id: UUID, idx: int, sha256: str, token: UUID) -> str:
    return f"{RENDER_PREFIX}{render_id}/{idx}-{sha256[:16]}-{token.hex[:8]}"
