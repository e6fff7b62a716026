"""What a file is, from its first bytes."""

import time

import pytest

from media import sniff


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page (text/html)"),
        (b"\xef\xbb\xbf \r\n<HTML lang=en>", "a web page (text/html)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document"),
        (b"<p>see <svg", "an SVG drawing"),
        (b'{"detail": "not found"}', "JSON (application/json)"),
        (b"[1, 2]", "JSON (application/json)"),
        (b"Not Found", "text"),
        ("Größe".encode() * 200, "text"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "a HEIC image"),
        (b"\x1aE\xdf\xa3\xa3\x42\x82\x84else", "a file like Matroska, but of another type"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "a RIFF file that is neither WebP nor WAV"),
        (b"BM\x00\x00", "a BMP image"),
        (b"\x00\x01\x02\x03", "unknown bytes"),
        (b"\xff\xfe\xfd", "unknown bytes"),
    ],
)
def test_what_is_not_kept_is_named(head, name):
    """A dead letter must state what was received instead of an image."""
    assert sniff.detect_format(head) is None
    assert sniff.describe_unknown_format(head[: sniff.HEAD_BYTES]) == name


@pytest.mark.parametrize(
    ("head", "format_name"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\x01\x02\x03\x04WEBPVP8 ", "webp"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1avif", "avif"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00avifmiaf", "avif"),
        (b"\x00\x00\x00\x20ftypavis\x00\x00\x00\x00msf1", "avif"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41", "mp4"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42", "mp4"),
        (b"\x1aE\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "webm"),
        (b"\x1aE\xdf\xa3\x01\x00\x00\x00\x00\x00\x00\x1f\x42\x82\x40\x04webm", "webm"),
        (b"\x1aE\xdf\xa3\xa3\x42\x82\x88matroska", "mkv"),
        (b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ", "mov"),
        (b"\x00\x00\x00\x08wide\x00\x00\x01\x00mdat", "mov"),
        (b"\x00\x00\x00\x1cftypM4A \x00\x00\x00\x00M4A isom", "m4a"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "wav"),
        (b"\xff\xfb\x90\x64", "mp3"),
        (b"<?xml version='1.0'?><!-- a --><svg xmlns=", "svg"),
        (b"\xef\xbb\xbf\n<s:svg xmlns:s=", "svg"),
    ],
)
def test_what_is_kept_is_recognised(head, format_name):
    """Content-Type and file names lie; the first bytes choose the one decoder that may look."""
    kind = sniff.detect_format(head)

    assert kind is not None
    assert kind.name == format_name


@pytest.mark.parametrize("lead", [b"<!-- x -->", b"<!---->", b"<??>", b"<!-- a -->\n", b"<!DOCTYPE svg []>"])
def test_a_head_full_of_comments_is_recognised_in_time(lead):
    """The time doubled with each comment; nothing interrupts an expression, which keeps the GIL."""
    count = sniff.HEAD_BYTES // len(lead) - 4

    started = time.process_time()
    assert sniff.detect_format(lead * 24 + b"<html>") is None
    assert sniff.detect_format(lead * count + b"<html>") is None
    assert sniff.detect_format(lead * count + b"<svg >") is sniff.SVG
    assert time.process_time() - started < 1
