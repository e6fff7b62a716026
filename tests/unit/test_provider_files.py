"""The files that an answer names: paths, order, `data:` URIs, and bounds."""

import base64
import json
import string
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.errors import MalformedPayload
from moorage.text import is_storable
from providers import output_files

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
URL = "https://replicate.delivery/a"
KEYS = st.text(max_size=3) | st.sampled_from(["a", "a.b", "a[0]", "0", '"', "\x00", "\ud800", "x" * 500, "x" * 501])
TREES = st.recursive(
    st.just(URL) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def allow_all(url: str) -> str | None:
    return None


def paths(value: object) -> list[str]:
    return [found.path for found in output_files.extract_files(value, "output", allow_all)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (URL, ["output"]),
        ([URL, "text", 7, None, True, URL], ["output[0]", "output[5]"]),
        ({"images": [{"url": URL}, {"url": URL}]}, ["output.images[0].url", "output.images[1].url"]),
        ([[URL], [[URL]]], ["output[0][0]", "output[1][0][0]"]),
        ({"b": URL, "a": URL}, ["output.b", "output.a"]),
        ({"a b": URL, "a.b": URL, "0": URL, "": URL}, ['output["a b"]', 'output["a.b"]', 'output["0"]', 'output[""]']),
        ({"é": URL, "\x00": URL}, ['output["\\u00e9"]', 'output["\\u0000"]']),
        (None, []),
        ({}, []),
        (1.5, []),
        ("see https://replicate.delivery/a", []),
        (["HTTPS://replicate.delivery/a", "http://replicate.delivery/a"], ["output[0]", "output[1]"]),
    ],
)
def test_a_file_has_the_path_where_it_stood(value, expected):
    """A retry, a poll and a webhook must give one file one path, or it is kept twice."""
    assert paths(value) == expected


@unhurried
@given(TREES)
def test_paths_differ_and_can_be_stored(value):
    """They are a unique key in a table: a double would lose a file, a NUL would fail the insert."""
    found = paths(value)

    assert len(set(found)) == len(found) == json.dumps(value).count(URL)
    assert all(is_storable(path) and len(path) <= 450 and path.isascii() for path in found)
    assert found == paths(json.loads(json.dumps(value)))


def test_files_come_in_document_order_at_any_depth():
    """Position is what an application shows first; a nesting of 900 levels must not overflow the stack."""
    deep: object = URL
    for _ in range(900):
        deep = [URL, deep]

    found = paths(deep)

    assert len(found) == len(set(found)) == 901
    assert found[:2] == ["output[0]", "output[1][0]"]


def test_too_many_files_are_refused_as_a_whole():
    """A body of 16 MB could name 800,000: that many rows are no result but an attack or a mistake."""
    assert len(paths([URL] * 1000)) == 1000
    with pytest.raises(MalformedPayload, match="more than 1000"):
        paths([URL] * 1001)


def test_a_url_that_must_not_be_fetched_is_named_with_its_problem():
    """Its siblings go on, and the dead output shows what it was."""
    bad = "https://evil.example/\x00" + "a" * 9000

    good, refused = output_files.extract_files([URL, bad], "output", lambda url: "evil" if "evil" in url else None)

    assert (good.url, good.problem) == (URL, None)
    assert refused.problem == "evil"
    assert refused.url
    assert is_storable(refused.url)
    assert len(refused.url) <= 8192


@unhurried
@given(st.binary(min_size=1, max_size=200))
def test_inline_bytes_come_back_whole(data):
    """Base64 padded or not, and every byte percent-encoded."""
    encoded = base64.b64encode(data).decode()
    quoted = "".join(f"%{byte:02x}" for byte in data)
    uris = [
        f"data:image/png;base64,{encoded}",
        f"data:;base64,{encoded.rstrip('=')}",
        f"DATA:image/png;charset=x;BASE64,{encoded}",
        f"data:application/octet-stream,{quoted}",
    ]

    assert [found.data for found in output_files.extract_files(uris, "output", allow_all)] == [data] * 4


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:,a%20b", b"a b"),
        ("data:text/plain,a,b", b"a,b"),
        ("data:image/png;base64,aGk%3D", b"hi"),
        ("data:image/png;base64,aG\n k=", b"hi"),
        ("data:text/plain;charset=utf-8,%C3%A9é", "éé".encode()),
        ("data:,%zz", b"%zz"),
    ],
)
def test_a_data_uri_is_decoded_by_its_standard(uri, data):
    """RFC 2397 with the liberties that models take."""
    (found,) = output_files.extract_files(uri, "output", allow_all)

    assert (found.data, found.url, found.problem) == (data, None, None)


@pytest.mark.parametrize("shift", range(4))
def test_a_long_data_uri_is_decoded_in_pieces(shift):
    """No escape is cut, and 15 MB of escapes take no gigabyte."""
    uri = "data:," + "a" * shift + "%41" * 30_000 + "%4%41%"

    tracemalloc.start()
    (found,) = output_files.extract_files(uri, "output", allow_all)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.data == b"a" * shift + b"A" * 30_000 + b"%4A%"
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("data:", "no comma"),
        ("data: a piece of text", "no comma"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "empty"),
        ("data:,", "empty"),
        ("data:image/png;base64,a", "not base64"),
        ("data:image/png;base64,a*b=", "not base64"),
        ("data:image/png;base64,aGk=aGk=", "not base64"),
        ("data:image/png;base64,é", "not base64"),
        ("data:,\ud800", "lone surrogate"),
    ],
)
def test_a_broken_data_uri_is_a_problem_and_no_error(uri, why):
    """One broken file must not cost its siblings; the reason does not show the payload."""
    (found,) = output_files.extract_files([uri], "output", allow_all)

    assert (found.data, found.url) == (None, None)
    assert found.problem
    assert why in found.problem
    assert is_storable(found.problem)


@unhurried
@given(st.text(alphabet=string.printable + "é\x00\ud800", max_size=40))
def test_any_data_uri_gives_bytes_or_a_problem(rest):
    """Nothing a model writes after `data:` may raise."""
    (found,) = output_files.extract_files("data:" + rest, "output", allow_all)

    assert (found.data is None) != (found.problem is None)
