"""What a server receives of a URL: the bytes that were signed."""

import string
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.urls import build_request_target, resolve_redirect

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
HOST = "https://files.example"
LEGAL = string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%[]|"


@pytest.mark.parametrize(
    "target",
    ["/%7Ea%2Db%e4/x.png", "/a%2fb?sig=a%3d%3D&x=%7e", "/a//b/../c/./d", "//a", "/a?", "/?", "/a;?b=;&c", "/100%/%zz",
     "/[a]|b?{x}^`|[]", "/a+b%20c?q=a+b", "/a?x=/../?y", "/'?'"],
)  # fmt: skip
def test_a_target_travels_byte_for_byte(target):
    """A signature may cover the text, escapes and their case included."""
    assert build_request_target(HOST + target) == target


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (HOST, "/"),
        (f"{HOST}#part", "/"),
        (f"{HOST}?a=1", "/?a=1"),
        (f"{HOST}/a#b?c", "/a"),
        (f"{HOST}:8443/a b.png?c d", "/a%20b.png?c%20d"),
        (f"{HOST}/ä/é%20?ü", "/%C3%A4/%C3%A9%20?%C3%BC"),
        (f'{HOST}/"<>^`{{}}?"<>', "/%22%3C%3E%5E%60%7B%7D?%22%3C%3E"),
        (f"{HOST}/\t\n\x00\x7f\\", "/%09%0A%00%7F%5C"),
    ],
)
def test_only_what_cannot_stand_in_a_request_line_is_escaped(url, target):
    """As browsers do; the fragment is never sent."""
    assert build_request_target(url) == target


@unhurried
@given(st.text(alphabet=LEGAL), st.text(alphabet=LEGAL + "?"), st.text())
def test_any_url_gives_one_line_with_the_same_bytes(path, query, wild):
    """Legal text is unchanged; other text becomes printable ASCII and keeps its meaning."""
    assert build_request_target(f"{HOST}/{path}?{query}") == f"/{path}?{query}"

    target = build_request_target(f"{HOST}/{wild}")
    sent = unquote_to_bytes(target)

    assert target.isascii()
    assert target.isprintable()
    assert " " not in target
    assert sent == unquote_to_bytes(("/" + wild.partition("#")[0]).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://b.example/%7e?", "https://b.example/%7e?"),
        ("//b.example/%7e/../x;?a", "https://b.example/%7e/../x;?a"),
        ("/x/../%2d?y#z", f"{HOST}/x/../%2d?y#z"),
        ("?y", f"{HOST}/a/b/c?y"),
        ("", f"{HOST}/a/b/c"),
        ("d%7E", f"{HOST}/a/b/d%7E"),
        ("./d/", f"{HOST}/a/b/d/"),
        ("../d?e/../f", f"{HOST}/a/d?e/../f"),
        ("../../../../d", f"{HOST}/d"),
        ("..", f"{HOST}/a/"),
        (".", f"{HOST}/a/b/"),
        (" /x \t", f"{HOST}/x"),
        ("/caf\xe9", f"{HOST}/caf%E9"),
        ("/caf\xc3\xa9", f"{HOST}/caf%C3%A9"),
    ],
)
def test_a_redirect_leads_where_it_says_byte_for_byte(location, url):
    """Content networks redirect to signed URLs."""
    assert resolve_redirect(f"{HOST}/a/b/c?q#f", location) == url


def test_a_relative_redirect_of_a_bare_host_has_a_path():
    """The path of a host without one is /."""
    assert resolve_redirect(HOST, "a.png") == f"{HOST}/a.png"
