"""One small file of every format that is neither an image nor a usual video, generated."""

import io
import json
import math
import struct
import tempfile
import zipfile
import zlib
from array import array
from pathlib import Path

HERTZ = 48_000
SVG = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" '
    b'"http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">\n<svg xmlns="http://www.w3.org/2000/svg" width="8">'
    + b"".join(b'<rect x="%d" width="1" height="8" fill="teal"/>' % x for x in range(8))
    + b"<script>alert(1)</script></svg>\n"
)
JSON = json.dumps({"segments": [{"start": n, "end": n + 1, "text": "one two three"} for n in range(40)]}).encode()
TEXT = b"A transcript, of several words.\n" * 40


def build_samples(seconds: float = 0.5, hertz: int = HERTZ) -> bytes:
    """Return a tone as 16-bit samples, one channel; no two parts are equal."""
    count = int(seconds * hertz)
    return array("h", (int(8000 * math.sin(n * n / 90_000)) for n in range(count))).tobytes()


def build_wav(seconds: float = 0.5, *, riff: int | None = None, length: int | None = None) -> bytes:
    data = build_samples(seconds)
    fmt = struct.pack("<HHIIHH", 1, 1, HERTZ, HERTZ * 2, 2, 16)
    body = (
        b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data) if length is None else length)
    )
    return b"RIFF" + struct.pack("<I", len(body) + len(data) if riff is None else riff) + body + data


def encode_audio(format_name: str, codec: str, seconds: float = 0.5, options: dict[str, str] | None = None) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=format_name, options=options or {}) as container:
        stream = container.add_stream(codec, rate=HERTZ)
        stream.layout = "mono"
        frame = av.AudioFrame(format="s16", layout="mono", samples=int(seconds * HERTZ))
        frame.planes[0].update(build_samples(seconds))
        frame.rate, frame.pts = HERTZ, 0
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=HERTZ, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return out.getvalue()


def encode_video(format_name: str, codec: str, pixels: str = "yuv420p", options: dict[str, str] | None = None) -> bytes:
    import av
    from PIL import Image

    with tempfile.NamedTemporaryFile(suffix=f".{format_name}") as file:
        with av.open(file.name, "w", format=format_name, options=options or {}) as container:
            stream = container.add_stream(codec, rate=12)
            stream.width, stream.height, stream.pix_fmt = 160, 120, pixels
            image = Image.linear_gradient("L").resize((160, 120)).convert("RGB")
            for turn in range(6):
                container.mux(stream.encode(av.VideoFrame.from_image(image.rotate(turn * 10))))
            container.mux(stream.encode())
        return Path(file.name).read_bytes()


def build_glb() -> bytes:
    text = json.dumps(
        {"asset": {"version": "2.0"}, "scenes": [{"nodes": []}], "buffers": [{"byteLength": 400}]}
    ).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", 400, b"BIN\0") + bytes(range(200)) * 2
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def build_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"layer_{number}.txt", f"content {number}\n" * 30)
    return out.getvalue()


def build_pdf() -> bytes:
    page = zlib.compress(b"0 0 100 100 re f\n" * 40)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>",
        b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(page), page),
    ]
    out, places = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, text in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    return bytes(out)


def build_files() -> dict[str, bytes]:
    """Return a file of each kind `file` by its format, without those that need an encoder."""
    return {"svg": SVG, "wav": build_wav(), "glb": build_glb(), "zip": build_zip(), "pdf": build_pdf(), "json": JSON,
            "txt": TEXT}  # fmt: skip


def build_encoded_files() -> dict[str, bytes]:
    return {
        "mp3": encode_audio("mp3", "libmp3lame"), "flac": encode_audio("flac", "flac"),
        "ogg": encode_audio("ogg", "libopus"), "m4a": encode_audio("ipod", "aac"),
        "weba": encode_audio("webm", "libopus"), "mka": encode_audio("matroska", "flac"),
        "mov": encode_video("mov", "prores_ks", "yuv422p10le"), "mkv": encode_video("matroska", "mpeg4"),
    }  # fmt: skip
