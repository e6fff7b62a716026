"""Storing a validated file and its thumbnail: objects first, under keys that name the bytes and the attempt."""

from moorage.failpoints import failpoint
from moorage.media import Fetched, Kept
from moorage.model import Lease, Output
from storage import keys
from tasks.deps import Deps, Pulse
from tasks.validate import Examined

IMMUTABLE = "public, max-age=31536000, immutable"
ONE_DAY = "public, max-age=86400"


def put(deps: Deps, lease: Lease, output: Output, fetched: Fetched, examined: Examined, pulse: Pulse) -> Kept:
    """
    Upload the original byte for byte and its thumbnail; returns the facts to record.

    What is uploaded and then not recorded (a lost lease, a crash) is deleted by nobody here: the orphan sweep knows
    from the token in the key that it can never be recorded later.
    """
    media, thumb = examined.media, examined.thumb
    key = keys.original(output.job_id, output.idx, fetched.sha256, lease.token, media.extension)
    thumb_key = keys.thumbnail(output.job_id, output.idx, fetched.sha256, lease.token) if thumb else None
    pulse.before_write()
    failpoint("keep.before_upload")
    fetched.file.seek(0)
    deps.blobs.put(
        deps.blobs.public_bucket,
        key,
        fetched.file,
        size=fetched.bytes,
        sha256=fetched.sha256,
        content_type=media.content_type,
        cache_control=IMMUTABLE,
    )
    failpoint("keep.after_upload")
    if thumb is not None and thumb_key is not None:
        pulse.before_write()
        deps.blobs.put(
            deps.blobs.public_bucket,
            thumb_key,
            thumb.data,
            size=len(thumb.data),
            sha256=thumb.sha256,
            content_type="image/webp",
            cache_control=ONE_DAY,
        )
        failpoint("keep.after_thumbnail")
    return Kept(
        media=media,
        bytes=fetched.bytes,
        sha256=fetched.sha256,
        key=key,
        thumb=thumb,
        thumb_key=thumb_key,
        thumb_missing=examined.thumb_missing,
    )
