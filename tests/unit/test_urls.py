"""Where a URL leads, and which hosts are allowed."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage.errors import ConfigError, DownloadRefused
from moorage.urls import MAX_URL_CHARS, HostAllowlist, HostPattern, parse_endpoint

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
SETTING = "REPLICATE_OUTPUT_HOSTS"
HOSTS = HostAllowlist(
    ("replicate.delivery", "*.replicate.delivery", "files.example:8443", "127.0.0.1"),
    ("127.0.0.1:8081", "[::1]:8082"),
    setting=SETTING,
)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Replicate.Delivery/a?b#c", ("https", "replicate.delivery", 443)),
        ("HTTP://a.example:0081/", ("http", "a.example", 81)),
        ("https://[::FFFF:7F00:1]:8082/", ("https", "::ffff:7f00:1", 8082)),
        ("https://ex%61mple.com/", ("https", "example.com", 443)),
        ("https://exämple.com/", ("https", "xn--exmple-cua.com", 443)),
        ("https://a.example#@evil.example", ("https", "a.example", 443)),
        ("https://a.example?@evil.example", ("https", "a.example", 443)),
    ],
)
def test_a_url_leads_where_requests_would_connect(url, expected):
    """The guard and the connection must see one host."""
    assert parse_endpoint(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1\\@replicate.delivery/", "backslash"),
        ("https://replicate.delivery\\.evil.example/", "backslash"),
        ("https://user@replicate.delivery/", "user name"),
        ("https://user:pass@replicate.delivery/", "user name"),
        ("https://:@replicate.delivery/", "user name"),
        ("https://@replicate.delivery/", "user name"),
        ("https://replicate.delivery@evil.example/", "user name"),
        ("https://replicate.delivery/\r\nX: y", "control"),
        ("https://replicate\t.delivery/", "control"),
        ("https://replicate.delivery/\x00", "control"),
        ("https://replicate.delivery/\x85", "control"),
        ("https://replicate.delivery/\ud800", "invalid character"),
        ("https://replicate.delivery/" + "a" * MAX_URL_CHARS, "more than 8192"),
        ("ftp://replicate.delivery/", "neither"),
        ("file:///etc/passwd", "neither"),
        ("//replicate.delivery/x", "neither"),
        ("", "neither"),
        ("https:", "no host"),
        ("https:///x", "no host"),
        ("https:replicate.delivery/x", "no host"),
        ("https://replicate.delivery:99999/", "cannot be parsed"),
        ("https://replicate.delivery:٤٤٣/", "cannot be parsed"),
        ("https://a b/", "cannot be parsed"),
        ("https://[::1/", "cannot be parsed"),
    ],
)
def test_a_url_that_two_parsers_could_read_in_two_ways_is_refused_with_the_reason(url, why):
    """Every one of these has fooled an allow-list somewhere."""
    with pytest.raises(DownloadRefused, match=why):
        parse_endpoint(url)


@unhurried
@given(
    st.one_of(
        st.text(),
        st.text().map("https://{}".format),
        st.text(alphabet="aA.:/\\@[]%#?1-é。\x00 ").map("http://{}".format),
    )
)
def test_any_text_leads_somewhere_or_is_refused(text):
    """URLs come from outside: nothing but our own error may come back."""
    with contextlib.suppress(DownloadRefused):
        endpoint = parse_endpoint(text)

        assert endpoint.host == endpoint.host.lower() != ""


@pytest.mark.parametrize(
    "url",
    [
        "https://replicate.delivery/x.png",
        "https://pbxt.replicate.delivery/x.png",
        "https://a.b.replicate.delivery:443/x.png",
        "https://files.example:8443/x",
        "http://127.0.0.1:8081/x",
        "https://127.0.0.1:8081/x",
        "https://127.0.0.1/x",
    ],
)
def test_an_allowed_host_has_no_problem(url):
    """A pattern without a port stands for the usual one, and for an exact exempt address."""
    assert HOSTS.refusal_reason(url) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://evil.example/x", ("evil.example", SETTING)),
        ("https://evilreplicate.delivery/x", ("evilreplicate.delivery", SETTING)),
        ("https://replicate.delivery.evil.example/x", ("replicate.delivery.evil.example", SETTING)),
        ("https://replicate.delivery./x", ("replicate.delivery.", SETTING)),
        ("https://replicate.delivery:8443/x", ("replicate.delivery:8443", SETTING)),
        ("https://files.example/x", ("files.example", SETTING)),
        ("https://127.0.0.1:9/x", ("127.0.0.1:9", SETTING)),
        ("https://[::1]:8082/x", ("[::1]:8082", SETTING)),
        ("http://replicate.delivery/x", ("replicate.delivery", "MOORAGE_EGRESS_ALLOW")),
        ("http://127.0.0.1:8082/x", ("127.0.0.1:8082", "MOORAGE_EGRESS_ALLOW")),
        ("http://169.254.169.254/latest", ("169.254.169.254", "MOORAGE_EGRESS_ALLOW")),
    ],
)
def test_another_host_or_port_is_a_problem_that_names_it_and_the_setting(url, words):
    """The text becomes the reason of a dead output: an operator must see what to change."""
    problem = HOSTS.refusal_reason(url)

    assert problem
    for word in words:
        assert word in problem


def test_a_wildcard_matches_subdomains_and_not_the_domain():
    """`*.x` that matched `.x` or `x` would allow more than was written."""
    pattern = HostPattern.parse("*.files.example", SETTING)

    assert pattern.matches(parse_endpoint("https://a.files.example/"))
    assert not pattern.matches(parse_endpoint("https://files.example/"))
    assert not pattern.matches(parse_endpoint("https://.files.example/"))


@pytest.mark.parametrize(
    ("pattern", "url"), [("[::1]:8082", "https://[0:0:0:0:0:0:0:1]:8082/"), ("::1", "https://[::1]/")]
)
def test_an_ipv6_address_is_one_address_however_written(pattern, url):
    """Text comparison would miss the long form."""
    assert HostPattern.parse(pattern, SETTING).matches(parse_endpoint(url))


@pytest.mark.parametrize(
    "pattern",
    ["https://files.example", "files.example/", "*", "a.*.example", "*files.example", "", "a b", "ä.example",
     "files.example:", "files.example:0", "files.example:65536", "files.example:x", "u@files.example",
     "files..example"],
)  # fmt: skip
def test_a_pattern_that_is_no_host_is_refused_at_start(pattern):
    """A pattern that can never match would make every output dead, one by one."""
    with pytest.raises(ConfigError, match=SETTING):
        HostPattern.parse(pattern, SETTING)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://any.example/", True),
        ("http://any.example/", False),
        ("http://127.0.0.1:8081/", True),
        ("http://127.0.0.1/", False),
    ],
)
def test_secrets_travel_encrypted_or_to_an_exact_exempt_address(url, expected):
    """A token over plain http: is disclosed."""
    assert HOSTS.is_safe_for_secrets(url) is expected
