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
from moorage.urls import HostAllowlist
from providers import output_files

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
URL = "https://replicate.delivery/a"
A, B, C = (f"https://replicate.delivery/{name}" for name in "abc")
HOSTS = HostAllowlist(("replicate.delivery",), (), setting="REPLICATE_OUTPUT_HOSTS")
KEYS = st.text(max_size=3) | st.sampled_from(["a", "a.b", "a[0]", "0", '"', "\x00", "\ud800", "x" * 500, "x" * 501])
TREES = st.recursive(
    st.just(URL) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def extract(value: object) -> output_files.ExtractionResult:
    return output_files.extract_files(value, "output", HOSTS)


def paths(value: object) -> list[str]:
    return [found.path for found in extract(value).outputs]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (URL, ["output"]),
        ([A, "text", 7, None, True, B], ["output[0]", "output[5]"]),
        ({"images": [{"url": A}, {"url": B}]}, ["output.images[0].url", "output.images[1].url"]),
        ([[A], [[B]]], ["output[0][0]", "output[1][0][0]"]),
        ({"b": A, "a": B}, ["output.b", "output.a"]),
        ({"a b": A, "a.b": B, "": C}, ['output["a b"]', 'output["a.b"]', 'output[""]']),
        ({"é": A, "\x00": B, "0": C}, ['output["\\u00e9"]', 'output["\\u0000"]', 'output["0"]']),
        (f" \n{A}\t", ["output"]),
        (None, []),
        ({}, []),
        (1.5, []),
        ("see https://replicate.delivery/a", []),
        (
            {"resultJson": json.dumps({"resultUrls": [A, B]})},
            ["output.resultJson.resultUrls[0]", "output.resultJson.resultUrls[1]"],
        ),
        (f' ["{A}"]', ["output[0]"]),
        (f'["{A}"', []),
        ("[" * 100_000, []),
        ({"param": json.dumps({"input": {"image": A}}), "url": B}, ["output.url"]),
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
    result = extract(value)
    found = [file.path for file in (*result.outputs, *result.mentions)]

    assert len(set(found)) == len(found) == json.dumps(value).count(URL)
    assert len(result.outputs) == min(len(found), 1)
    assert all(is_storable(path) and len(path) <= 450 and path.isascii() for path in found)
    assert result == extract(json.loads(json.dumps(value)))


def test_json_within_text_is_read_through_any_number_of_texts():
    """Each one doubles the escapes, so that a body has few; what is no JSON remains a text that mentions its files."""
    nested = json.dumps({"a": json.dumps([json.dumps({"b": A})])})

    broken = extract(f'{{"a": "{A}"')

    assert paths(nested) == ["output.a[0].b"]
    assert [(file.url, file.problem) for file in broken.mentions] == [(A, "is part of a text")]


def test_files_come_in_document_order_at_any_depth():
    """Position is what an application shows first; a nesting of 900 levels must not overflow the stack."""
    deep: object = URL
    for number in range(900):
        deep = [f"{URL}{number}", deep]

    found = paths(deep)

    assert len(found) == len(set(found)) == 901
    assert found[:2] == ["output[0]", "output[1][0]"]


def test_too_many_files_are_refused_as_a_whole():
    """A body of 16 MB could name 800,000: that many rows are no result but an attack or a mistake."""
    many = [f"{URL}{number}" for number in range(1001)]

    assert len(paths(many[:1000])) == 1000
    with pytest.raises(MalformedPayload, match="more than 1000"):
        paths(many)


def test_too_many_mentions_are_cut_short():
    """A text may name any number; the list of them is bounded."""
    mentions = extract([A, *([A] * 3000)]).mentions

    assert len(mentions) == 1001
    assert mentions[-1].problem == "further ones are not listed"


def test_a_url_that_must_not_be_fetched_is_named_with_its_problem():
    """Its siblings go on, and the dead output shows what it was."""
    bad = "https://evil.example/\x00" + "a" * 9000

    good, refused = extract([URL, bad]).outputs

    assert (good.url, good.problem) == (URL, None)
    assert "9022 characters" in (refused.problem or "")
    assert refused.url
    assert is_storable(refused.url)
    assert len(refused.url) <= 8192


@unhurried
@given(st.binary(min_size=1, max_size=200))
def test_inline_bytes_come_back_whole(data):
    """Both alphabets of base64, padded or not, and every byte percent-encoded."""
    encoded = base64.b64encode(data).decode()
    quoted = "".join(f"%{byte:02x}" for byte in data)
    uris = [
        f"data:image/png;base64,{encoded}",
        f"data:;base64,{encoded.rstrip('=')}",
        f"data:a/b;base64,{base64.urlsafe_b64encode(data).decode()}",
        f"data:a/c;base64,{base64.urlsafe_b64encode(data).decode().rstrip('=')}",
        f"DATA:image/png;charset=x;BASE64,{encoded}",
        f"data:application/octet-stream,{quoted}",
    ]

    assert [found.data for found in extract(uris).outputs] == [data] * 6


@pytest.mark.parametrize(
    ("uri", "data"),
    [
        ("data:,a%20b", b"a b"),
        ("data:text/plain,a,b", b"a,b"),
        ("data:image/png;base64,aGk%3D", b"hi"),
        ("data:image/png;base64,aG\n k=", b"hi"),
        ("data:image/png;base64,aGk====", b"hi"),
        ("data:text/plain;charset=utf-8,%C3%A9é", "éé".encode()),
        ("data:,%zz", b"%zz"),
    ],
)
def test_a_data_uri_is_decoded_by_its_standard(uri, data):
    """RFC 2397 with the liberties that models take."""
    (found,) = extract(uri).outputs

    assert (found.data, found.url, found.problem) == (data, None, None)


@pytest.mark.parametrize(
    "head",
    [b"\xff\xfb\x90", b"\xff\xfa\x50", b"\xff\xf3\x84", b"\xff\xf2\xc4", b"\xff\xe3\x48", b"ID3", b"glTF\2", b"<svg x"],
)
def test_base64_is_known_by_its_first_bytes(head):
    """Speech at 24 kHz is MPEG 2: its first bytes differ from those of music."""
    data = head + bytes(range(200, 250))

    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("=")):
        assert [found.data for found in extract({"audio": text}).outputs] == [data]


def test_a_url_in_a_key_and_one_without_a_host_are_accounted_for():
    """Neither is passed over in silence."""
    found = extract({URL: {"seed": 1}, "mask": "file:///tmp/out.png"})

    assert [(file.url, bool(file.problem)) for file in found.outputs] == [("file:///tmp/out.png", True)]
    assert [(file.url, file.problem) for file in found.mentions] == [(URL, "is part of a text")]


@pytest.mark.parametrize("shift", range(4))
def test_a_long_data_uri_is_decoded_in_pieces(shift):
    """No escape is cut, and 15 MB of escapes take no gigabyte."""
    uri = "data:," + "a" * shift + "%41" * 30_000 + "%4%41%"

    tracemalloc.start()
    (found,) = extract(uri).outputs
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found.data == b"a" * shift + b"A" * 30_000 + b"%4A%"
    assert peak_bytes < 4_000_000


@pytest.mark.parametrize(
    ("uri", "why"),
    [
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
    (found,) = extract([uri]).outputs

    assert (found.data, found.url) == (None, None)
    assert found.problem
    assert why in found.problem
    assert is_storable(found.problem)


@unhurried
@given(st.text(alphabet=string.printable + "é\x00\ud800", max_size=40))
def test_any_data_uri_gives_bytes_or_a_problem(rest):
    """Nothing a model writes after `data:` may raise."""
    (found,) = extract("data:;" + rest).outputs

    assert (found.data is None) != (found.problem is None)
