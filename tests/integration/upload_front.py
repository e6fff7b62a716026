"""Files as browsers and programs send them to the API, and their objects in storage."""

import io
import urllib.error
import urllib.request

from PIL import Image

from tasks.step import Deps
from tests.integration import web_process as wp

PLACE = b"47.3769N 8.5417E"


def picture(form: str = "JPEG", orientation: int = 1, size: tuple[int, int] = (40, 24)) -> bytes:
    """Return an image with a location in its EXIF data."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, PLACE.decode()
    exif.get_ifd(0x8825)[2] = (47.0, 22.0, 36.0)
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(out, form, exif=exif)
    assert PLACE in out.getvalue()
    return out.getvalue()


def form(parts: list[tuple[str, bytes]], boundary: str = "b0undary") -> tuple[bytes, dict[str, str]]:
    edge, said = boundary.encode(), b"Content-Disposition: form-data; "
    body = b"".join(b"--%s\r\n%s%s\r\n\r\n%s\r\n" % (edge, said, head.encode(), data) for head, data in parts)
    return body + b"--%s--\r\n" % edge, {"content-type": f"multipart/form-data; boundary={boundary}"}


def send(front: wp.Front, body: bytes, path: str = "/v1/uploads?owner=ada", **headers: str) -> wp.Answer:
    given = {"content-type": "application/octet-stream", **{n.replace("_", "-"): v for n, v in headers.items()}}
    return front.ask("POST", path, body, {**wp.BEARER, **given})


def read(url: str) -> tuple[int, bytes]:
    """Read a URL without credentials."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def stored(deps: Deps) -> set[str]:
    return {listed.key for listed in deps.storage.list_objects(deps.storage.private_bucket, "")}
