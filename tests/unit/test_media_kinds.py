"""Files that are neither images nor MP4 or WebM: kept if they are complete, refused if they are cut or damaged."""

import contextlib
import dataclasses
import io
import json
import random
import struct
import tracemalloc
import zipfile

import pytest

from egress import download
from media import poster, sniff, texts, validate
from media.containers import ContainerError
from media.limits import Limits
from moorage.errors import InvalidMedia
from moorage.formats import FORMATS
from tests.support import kinds

LIMITS = Limits(thumbnail_px=100)
pytest.importorskip("av", reason="the `video` extra is not installed")
FILES = {**kinds.build_files(), **kinds.build_encoded_files()}
TYPES = {
    "svg": "image/svg+xml", "wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg",
    "m4a": "audio/mp4", "weba": "audio/webm", "mka": "audio/x-matroska",
    "glb": "model/gltf-binary", "zip": "application/zip", "pdf": "application/pdf",
    "json": "application/json", "txt": "text/plain", "mov": "video/quicktime", "mkv": "video/x-matroska",
}  # fmt: skip
AUDIO = ("wav", "mp3", "flac", "ogg", "m4a", "weba", "mka")


def examine(data, name="", content_type=None, limits=LIMITS):
    extension = download.find_extension(f"https://cdn.example/{name}")
    with download.spool_chunks(
        iter((data,)), limits, lambda: None, content_type=content_type, extension=extension
    ) as fetched:
        return validate.validate_file(fetched, limits)


def refusal(data, name="", content_type=None, limits=LIMITS):
    with pytest.raises(InvalidMedia) as caught:
        examine(data, name, content_type, limits)
    return str(caught.value)


@pytest.fixture
def no_poster(monkeypatch):
    def refuse(*_):
        raise poster.PosterError("left out")

    monkeypatch.setattr(poster, "extract_poster", refuse)


def test_every_format_has_a_name_for_the_setting():
    """MOORAGE_ACCEPT names what the detection knows, and nothing else."""
    known = {kind.name for kind in vars(sniff).values() if isinstance(kind, sniff.FileFormat)}

    assert known == set(FORMATS)
    assert set(FILES) | {"png", "jpeg", "webp", "gif", "avif", "mp4", "webm"} == set(FORMATS)


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("mov", "mkv")])
def test_a_file_is_kept_with_its_type(name):
    """Models make sound, drawings, models, archives and transcripts, and the provider deletes all of them."""
    examined = examine(FILES[name], f"out.{name}", TYPES[name])

    media = examined.media
    assert (media.media, media.format, media.extension, media.content_type) == ("file", name, name, TYPES[name])
    assert (examined.thumb, examined.thumb_missing, media.notes) == (None, None, None)
    assert media.duration_s == (pytest.approx(0.5, abs=0.1) if name in AUDIO else None)


@pytest.mark.parametrize("name", ["mov", "mkv"])
def test_a_video_has_a_poster(name):
    """ProRes in MOV and Matroska take the path of MP4 and WebM."""
    examined = examine(FILES[name])

    media = examined.media
    assert (media.media, media.format, media.extension, media.content_type) == ("video", name, name, TYPES[name])
    assert (media.width_px, media.height_px, media.duration_s) == (160, 120, pytest.approx(0.5, abs=0.1))
    assert (examined.thumb.width_px, examined.thumb_missing) == (100, None)


def test_hevc_has_a_poster():
    """What cameras and editors write into MOV beside ProRes."""
    examined = examine(kinds.encode_video("mov", "libx265", options={"movflags": "faststart"}))

    assert (examined.media.format, examined.thumb.width_px) == ("mov", 100)


@pytest.mark.parametrize("name", [name for name in FILES if name != "txt"])
def test_a_file_cut_in_half_is_refused(name, no_poster):
    """A download that ends early without an error looks complete; only plain text has no end."""
    data = FILES[name]

    for size in (len(data) // 2, len(data) * 9 // 10, len(data) - 3):
        assert refusal(data[:size], f"out.{name}", TYPES[name])


@pytest.mark.parametrize("name", list(FILES))
def test_a_file_with_zeros_in_its_header_is_refused(name, no_poster):
    """Storage that loses a block returns zeros."""
    data = FILES[name]

    for start in (0, 4, 8):
        assert refusal(data[:start] + bytes(64) + data[start + 64 :], f"out.{name}", TYPES[name]), start


PAGES = {
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "text/html"),
    "fragment": (b"<h1>502 Bad Gateway</h1>", "text/html"),
    "xhtml": (
        b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><svg/></html>',
        "application/xhtml+xml",
    ),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "application/xml"),
    "detail": (b'{"detail": "Not found."}', "application/json"),
    "problem": (b'{"title": "Gone", "status": 410, "type": "about:blank"}', "application/json"),
    "error": (b'{"error": {"code": 404, "message": "no such file"}, "id": "x1"}', "application/json"),
    "graphql": (b'{"data": null, "errors": [{"message": "denied"}]}', "application/json"),
    "list": (b'[{"errorCode": "X", "message": "expired"}]', "application/json"),
    "not ok": (b'{"success": false, "why": "expired"}', "application/json"),
    "camel case": (b'{"errorCode": "E1", "errorMessage": "expired"}', "application/json"),
    "short": (b'{"err": "expired"}', "application/json"),
    "exception": (b'{"exception": "NotFound", "trace": ["a", "b"]}', "application/json"),
    "aws": (b'{"__type": "AccessDenied", "Message": "denied"}', "application/json"),
    "json:api": (
        b'{"errors": [{"status": "404", "title": "x", "detail": "y"}], "jsonapi": {"version": "1.0"}}',
        "application/vnd.api+json",
    ),
    "graphql field": (b'{"data": {"file": null}, "errors": [{"message": "denied"}]}', "application/json"),
    "limit": (b'{"message": "too many requests", "request_id": "1", "retry_after": 3}', "application/json"),
    "empty": (b"{}", "application/json"),
    "scalar": (b'"gone"', "application/json"),
}


@pytest.mark.parametrize("name", ["out.png", "out.mp4", "out.glb", "out.json", "out.txt", "out", "out.html", "out.svg"])
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("empty", "scalar")])
def test_a_page_or_an_error_is_no_file(page, name):
    """A server that answers 200 with a login page or an error has not sent the file, whatever it is called."""
    data, content_type = PAGES[page]

    for stated in (content_type, TYPES.get(name.partition(".")[2]), None):
        assert refusal(data, name, stated)


@pytest.mark.parametrize("page", ["empty", "scalar"])
def test_json_without_content_is_no_file(page):
    """As plain text it is some."""
    assert refusal(PAGES[page][0], "out.json", "application/json")


@pytest.mark.parametrize(
    "text",
    [
        '{"words": [{"text": "a"}], "errors": ["low confidence"]}', '{"error": null, "text": "hello"}',
        '{"error": 0.013, "score": 0.9}', '{"label": "cat", "status": "succeeded"}', "[[1, 2], [3, 4]]",
        '{"name": "x", "type": "y", "title": "z"}', '{"errors": [{"line": 3}], "words": [1]}',
        '{"message": {"role": "assistant", "content": "hello"}}',
    ],
)  # fmt: skip
def test_a_result_is_no_error(text):
    """Results have fields of the same names."""
    assert not texts.describes_error(json.loads(text))
    assert examine(text.encode(), "out.json", "application/json; charset=utf-8").media.format == "json"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("out", "application/json"), ("out.json", "application/octet-stream"), ("out.txt", "application/json"),
     ("out.json", None), ("out.json/", "application/json"), ("out?x=.json", "application/json")],
)  # fmt: skip
def test_json_needs_both_names(name, content_type):
    """JSON has no signature: without both names it may be anything, mostly an error."""
    assert refusal(kinds.JSON, name, content_type) == "JSON (application/json) instead of an image or video"


def test_long_json_is_checked_without_values_in_memory():
    """Values take twenty times the memory of their text."""
    data = json.dumps({"mask": ['[}"\\"' * 9] * 60_000, "depth": [[n, {"a": n}] for n in range(9000)]}).encode()
    assert len(data) > 2 * 2**20

    assert examine(data, "out.json", "application/json").media.format == "json"
    for damaged in (
        data[: len(data) // 2],
        data[:-1],
        data + b"x",
        data[:-3] + b"}]}",
        data[:999] + b"\0" + data[1000:],
    ):
        assert refusal(damaged, "out.json", "application/json")


@pytest.mark.parametrize("text", [b"ABCD", b"\\n b"])
def test_a_long_text_in_json_costs_no_memory(text):
    """Sound and images as base64: each character of the text cost 120 bytes."""
    data = b'{"audio": "' + text * 2**20 + b'"}'

    tracemalloc.start()
    texts.check_json(data, 0, len(data))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 2**22


@pytest.mark.parametrize("unknown", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFDB, 0xFFFFFFFF])
def test_streamed_wav_is_kept(unknown):
    """Speech models stream: their header is sent before its sizes are known."""
    media = examine(kinds.build_wav(riff=unknown, length=unknown)).media

    assert (media.format, media.duration_s) == ("wav", pytest.approx(0.5))
    assert media.notes == "its header does not state how long it is"


def test_joined_mp3_is_kept():
    """Speech in several parts is sent as their MP3 files in sequence, each with its tag."""
    media = examine(FILES["mp3"] * 2 + b"TAG" + bytes(125)).media

    assert (media.duration_s, media.notes) == (pytest.approx(1.0, abs=0.2), None)


def test_mp3_without_a_count_of_frames_is_cut_visibly():
    """Without the first frame's count, only an incomplete last frame shows the cut."""
    data = kinds.encode_audio("mp3", "libmp3lame", options={"write_xing": "0", "id3v2_version": "0"})

    assert examine(data).media.format == "mp3"
    assert refusal(data[: len(data) // 2 + 9]).startswith("the mp3 is truncated: its last frame has ")


def test_sound_in_an_mp4_of_any_brand_is_audio(no_poster):
    """Some programs write sound under the brand of a video, and the reverse."""
    sound = FILES["m4a"].replace(b"ftypM4A ", b"ftypisom", 1)

    examined = examine(sound)

    assert (examined.media.media, examined.media.format, examined.media.extension) == ("file", "m4a", "m4a")


def test_quicktime_without_a_brand_is_kept(no_poster):
    """Files from before the brand start with their first box."""
    data = FILES["mov"]
    size = int.from_bytes(data[:4], "big")
    assert data[size + 4 : size + 8] == b"wide"

    plain = data[:size].replace(b"ftypqt  ", b"skipqt  ") + data[size:]  # offsets in the index stay

    assert examine(plain).media.format == "mov"


def test_flac_of_unknown_length_is_kept():
    """A program that streams does not return to the header."""
    data = bytearray(FILES["flac"])
    data[8 + 13] &= 0xF0
    data[8 + 14 : 8 + 18] = bytes(4)

    assert examine(bytes(data)).media.duration_s == pytest.approx(0.5)
    assert refusal(bytes(data[: len(data) // 2]))


def test_zip64_is_walked():
    """Archives above 4 GiB, and those of programs that always write the long form."""
    data = kinds.build_zip()
    end = data.rfind(b"PK\x05\x06")
    count, length, start = struct.unpack_from("<HII", data, end + 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)

    assert examine(data[:end] + record + locator + last).media.format == "zip"


def test_a_zip_may_have_the_mark_of_an_end_in_its_comment():
    """The last such mark is not always the end."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "content")
        archive.comment = b"PK\x05\x06, PK\x05\x06 and " + b"PK\x05\x06" + bytes(30)

    assert (examine(out.getvalue()).media.format, examine(out.getvalue()).media.notes) == ("zip", None)
    assert refusal(out.getvalue()[:-1])


@pytest.mark.parametrize(("before", "after"), [(b"\xef\xbb\xbf", b""), (b"", b"\0\0\0")])
def test_padding_and_byte_order_mark_do_not_cost_a_model(before, after):
    """Some exporters pad with zeros instead of spaces."""
    text = before + b'{"asset": {"version": "2.0"}}' + after
    text += b"\0" * (-len(text) % 4) if after else b" " * (-len(text) % 4)
    chunk = struct.pack("<I4s", len(text), b"JSON") + text

    assert examine(struct.pack("<4sII", b"glTF", 2, 12 + len(chunk)) + chunk).media.format == "glb"


def test_a_pdf_with_zeros_behind_its_first_line_is_refused():
    """Without a table of places, the first objects are not looked up."""
    data = FILES["pdf"].replace(b"%\xe2\xe3\xcf\xd3\n", b"%\xe2\xe3\xcf\xd3\n7 0 obj\n<< /Length 40 >>\nendobj\n")
    table = data.rindex(b"xref\n0")
    data = data[:table] + b"9 0 obj << /Type /XRef >>\nstartxref\n%d\n%%%%EOF\n" % table

    assert examine(data).media.format == "pdf"
    assert refusal(data[:9] + bytes(32) + data[41:]) == "the pdf is damaged: it begins without an object"


@pytest.mark.parametrize(
    "data",
    [b'<?xml version="1.0"?><!--' + b"x" * 5000 + b'--><svg xmlns="http://www.w3.org/2000/svg"/>',
     '<?xml version="1.0" encoding="UTF-16"?><svg xmlns="http://www.w3.org/2000/svg"/>'.encode("utf-16")],
)  # fmt: skip
def test_an_svg_without_its_usual_start_needs_both_names(data):
    """UTF-16, or a comment that is longer than what is read to find the format."""
    assert examine(data, "out.svg", "image/svg+xml").media.format == "svg"
    assert refusal(data, "out.png", "image/svg+xml")
    assert refusal(data.replace(b"svg", b"xml").replace("svg".encode("utf-16-le"), b"xxxxxx"), "a.svg", "image/svg+xml")


@pytest.mark.parametrize("text", [b"<|en|> one two", b"<3 cats", b"< 5 and > 3"])
def test_a_text_may_begin_with_a_bracket(text):
    """Transcripts begin with tokens."""
    assert examine(text, "out.txt", "text/plain").media.format == "txt"


def test_entities_do_not_cost_memory():
    """Nested entities of a hostile SVG expand to gigabytes."""
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    data = f'<!DOCTYPE svg [<!ENTITY e0 "lol">{levels}]><svg xmlns="http://www.w3.org/2000/svg">&e11;</svg>'.encode()

    assert refusal(data).startswith("the svg is truncated or malformed: ")
    for malformed in (b"<svg><a></svg>", b'<?xml version="1.0" encoding="unknown"?><svg/>', b"<svg/><svg/>"):
        with pytest.raises(ContainerError):
            texts.parse_svg(malformed)


def test_bytes_behind_a_file_are_noted():
    """Some programs pad; the decoders of all of them stop at the stated end."""
    for name in ("glb", "zip"):
        assert "ignored" in (examine(FILES[name] + bytes(7)).media.notes or "")


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("mov", "mkv")])
def test_damage_of_any_kind_is_a_refusal(name):
    """An unexpected error would be retried for hours."""
    rng = random.Random(name)
    for _ in range(150):
        data = bytearray(FILES[name])
        for _ in range(rng.choice((1, 1, 3, 20))):
            start, length = rng.randrange(min(len(data), rng.choice((40, 300, 10**6)))), rng.choice((0, 1, 4, 16))
            data[start : start + length] = rng.choice((rng.randbytes(length), rng.randbytes(1), b"", b"\xff" * length))
        with contextlib.suppress(ContainerError):
            validate.PARSERS[{"weba": "webm", "mka": "mkv"}.get(name, name)](bytes(data))


def test_only_named_formats_are_accepted():
    """MOORAGE_ACCEPT restricts what is kept; the message names it."""
    limits = dataclasses.replace(LIMITS, accept=("png", "wav"))

    assert examine(FILES["wav"], limits=limits).media.format == "wav"
    assert refusal(FILES["glb"], limits=limits) == "the format glb is not accepted (MOORAGE_ACCEPT)"
    assert refusal(FILES["mov"], limits=limits) == "the format mov is not accepted (MOORAGE_ACCEPT)"


def test_a_file_above_its_limit_is_refused():
    """Kind `file` shares the limit of videos."""
    limits = dataclasses.replace(LIMITS, video_max_bytes=1000, image_max_bytes=1000)
    with download.spool_bytes(FILES["glb"][:], LIMITS) as fetched, pytest.raises(InvalidMedia) as caught:
        validate.validate_file(dataclasses.replace(fetched, size_bytes=1001), limits)

    assert str(caught.value) == "1001 bytes, the limit is 1000 (MOORAGE_VIDEO_MAX_BYTES)"
