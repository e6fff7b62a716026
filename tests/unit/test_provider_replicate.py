"""What is Replicate's own: times, ids, odd fields, its hosts and its token."""

import json
from datetime import UTC, datetime, timedelta

import pytest

import providers
from moorage.errors import ConfigError, MalformedPayload, ProviderRefused
from moorage.settings import Settings
from providers import Provider
from tasks.predictions.reports import compute_expiry

NEEDED = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
TOKEN = "r8_token"


def replicate(**given: object) -> Provider:
    return providers.load(Settings(_env_file=None, **{**NEEDED, **given}))["replicate"]


def body(**given: object) -> bytes:
    return json.dumps({"id": "p1", "status": "succeeded", "output": None} | given).encode()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-11-20T10:00:07Z", datetime(2026, 11, 20, 11, 0, 7, tzinfo=UTC)),
        ("2026-11-20T12:00:07.123456789+02:00", datetime(2026, 11, 20, 11, 0, 7, 123456, tzinfo=UTC)),
        ("2026-11-20T10:00:07", datetime(2026, 11, 20, 11, 0, 7, tzinfo=UTC)),
        ("9999-12-31T23:30:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("yesterday", None),
        (1763632807, None),
        (None, None),
    ],
)
def test_files_live_an_hour_after_the_end(written, expected):
    """Without a time of the end, or with an absurd one, an hour after the arrival."""
    provider, received_at = replicate(), datetime(2026, 11, 20, 10, 5, tzinfo=UTC)

    report = provider.parse_report(body(completed_at=written))

    expires_at = compute_expiry(report, received_at, provider.output_lifetime_seconds)
    assert expires_at == (expected or received_at + timedelta(hours=1))


@pytest.mark.parametrize("bad", [None, "", 1.5, True, [], {}, "a\x00b", "\ud800", "a" * 201, 10**200])
def test_an_id_that_cannot_be_stored_is_unreadable(bad):
    """It is a key in two tables and a step in a path."""
    with pytest.raises(MalformedPayload, match=r"^id "):
        replicate().parse_report(body(id=bad))


@pytest.mark.parametrize("bad", [None, "", 7, ["succeeded"]])
def test_a_status_that_is_not_text_is_malformed(bad):
    """As unknown it would wait for a poll with the same result."""
    with pytest.raises(MalformedPayload, match=r"^status "):
        replicate().parse_report(body(status=bad))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("Prediction failed", "Prediction failed"),
        ("a\x00b\ud800", "a\\x00b\\ud800"),
        ({"message": "no GPU", "code": 7}, "no GPU"),
        ({"code": 7}, '{"code": 7}'),
        (["a"], '["a"]'),
        ("", None),
        (None, None),
    ],
)
def test_an_error_of_any_type_becomes_text_that_can_be_stored(error, expected):
    """The JavaScript client types it unknown: models put what they like there."""
    assert replicate().parse_report(body(status="failed", error=error)).error == expected


def test_an_error_of_megabytes_is_cut():
    """It is shown to people and stored with the job; the delivery keeps all of it."""
    assert len(replicate().parse_report(body(status="failed", error="x" * 2**20)).error or "") == 2000


def test_logs_and_prompt_are_not_looked_at():
    """A NUL in the logs, NaN in the metrics and links in the input say nothing of the result."""
    text = '{"id":"p1","status":"succeeded","output":[],"logs":"\\u0000","metrics":{"x":NaN},"input":{"i":"https://x.example/"}}'

    assert replicate().parse_report(text.encode()).outputs == ()


def test_the_token_goes_to_the_api_alone():
    """Its own files need it; a host that an operator adds for output files must never get it."""
    provider = replicate(
        replicate_api_token=TOKEN, replicate_output_hosts="api.replicate.com,cdn.example,*.replicate.delivery"
    )
    bearer = {"Authorization": f"Bearer {TOKEN}"}

    assert provider.download_headers("https://api.replicate.com/v1/files/x/download?expiry=1&owner=a") == bearer
    for url in (
        "https://pbxt.replicate.delivery/x",
        "https://cdn.example/v1/files/x",
        "https://api.replicate.com/v1/account",
        "https://api.replicate.com/v1/webhooks/default/secret",
        "https://api.replicate.com/v1/files/../account",
        "https://api.replicate.com/v1/files/%2e%2E/account",
        "https://api.replicate.com/v1/files",
        "https://api.replicate.com/v1/predictions/p1",
        "http://api.replicate.com/v1/files/x",
        "https://api.replicate.com:8443/v1/files/x",
        "https://api.replicate.com@evil.example/v1/files/x",
        "not a URL",
    ):
        assert provider.refusal_reason(url) or provider.download_headers(url) == {}, url
        assert provider.download_headers(url) == {}, url
    assert replicate().download_headers("https://api.replicate.com/v1/files/x") == {}


def test_the_token_goes_over_plain_http_only_to_the_exact_exempt_address():
    """So that the stand-in is reached by settings that production has too."""
    provider = replicate(
        replicate_api_token=TOKEN,
        replicate_api_url="http://127.0.0.1:8081",
        replicate_output_hosts="127.0.0.1",
        egress_allow="127.0.0.1:8081",
    )

    assert provider.refusal_reason("http://127.0.0.1:8081/v1/files/out.png") is None
    assert provider.download_headers("http://127.0.0.1:8081/v1/files/out.png") == {"Authorization": f"Bearer {TOKEN}"}
    assert provider.refusal_reason("http://127.0.0.1:8082/v1/files/out.png")
    assert provider.download_headers("http://127.0.0.1:8082/v1/files/out.png") == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"replicate_api_url": "http://api.replicate.example"}, "REPLICATE_API_URL is not encrypted"),
        ({"replicate_api_url": "https://user:pw@api.replicate.com"}, "REPLICATE_API_URL: the URL contains a user name"),
        ({"replicate_api_url": "https:///"}, "REPLICATE_API_URL: the URL has no host"),
        ({"replicate_api_token": "r8 token\r\nX: y"}, "REPLICATE_API_TOKEN contains a character"),
        ({"replicate_output_hosts": "https://replicate.delivery"}, "REPLICATE_OUTPUT_HOSTS"),
        ({"replicate_webhook_secret": "whsec_a"}, "REPLICATE_WEBHOOK_SECRET: secret 1"),
    ],
)
def test_a_wrong_setting_refuses_the_start(given, words):
    """On the first webhook or poll it would be too late. The message shows no secret."""
    with pytest.raises(ConfigError, match=words) as raised:
        replicate(**{"replicate_api_token": TOKEN, **given})

    assert TOKEN not in str(raised.value)
    assert "pw" not in str(raised.value)


def test_without_a_token_it_cannot_be_polled():
    """Reconciliation checks `can_poll` first; other callers get the setting in the message."""
    provider = replicate()

    assert not provider.can_poll
    with pytest.raises(ProviderRefused, match="REPLICATE_API_TOKEN"):
        provider.poll("p1")
