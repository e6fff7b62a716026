"""
What every provider reads in a delivery: recorded ones, damaged ones, and any bytes.

A new provider adds files to `recorded/{provider}/` (the raw text of a body, and what is to be read in it), and to
SETTINGS what they need.
"""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import providers
from moorage import webhook_url_keys
from moorage.errors import MalformedPayload, UnrelatedEvent
from moorage.provider_types import PredictionReport
from moorage.settings import Settings
from moorage.text import is_storable
from tasks.predictions.reports import compute_expiry
from tests.support import declared

# The computer is shared; and there are some sixty deliveries and a dozen providers, each of them tried so often.
unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
SETTINGS = {
    "database_url": "postgresql://moorage@localhost/moorage",
    "broker_url": "redis://localhost",
    "standard_output_hosts": "files.example",
}
with tempfile.TemporaryDirectory() as folder:
    LOADED = providers.load(
        Settings(_env_file=None, **SETTINGS, providers_file=declared.write_file(Path(folder) / "providers.toml"))
    )
FILES = sorted((Path(__file__).parent / "recorded").glob("*/*.json"))
each_provider = pytest.mark.parametrize("provider", LOADED.values(), ids=lambda one: one.name)
each_delivery = pytest.mark.parametrize(
    ("provider", "delivery"),
    [(LOADED[file.parent.name], json.loads(file.read_text(encoding="utf-8"))) for file in FILES],
    ids=[f"{file.parent.name}-{file.stem}" for file in FILES],
)


def storable_parts(report: PredictionReport) -> list[str]:
    texts = [report.external_id, report.raw_status, report.error or "", report.model or ""]
    for found in report.outputs:
        texts += [found.path, found.url or "", found.problem or ""]
    return texts


def test_every_built_in_provider_has_recorded_deliveries():
    """A provider without them is untested. Payloads of the catalog are in the corpus (`test_provider_declared.py`)."""
    assert set(providers.load(Settings(_env_file=None, **SETTINGS))) == {file.parent.name for file in FILES}


@each_provider
def test_webhook_key_is_not_stored_with_a_body_that_repeats_it(provider):
    """It is hashed at rest; a backup of the database must not contain it. Everything else is stored unchanged."""
    key = "Xq3_single-use-key_Zw9".ljust(43, "x")
    url = f"https://us.example/webhooks/{provider.name}?key={key}"
    body = f'{{"webhook": "{url}", "input": {{"q": "?key={key}"}}}}'.encode()

    redacted = webhook_url_keys.redact_keys(body)

    assert redacted == body.replace(f"{provider.name}?key={key}".encode(), f"{provider.name}?key=".encode() + b"*" * 43)
    assert len(redacted) == len(body)


@each_delivery
def test_a_redacted_delivery_parses_to_the_same_report(provider, delivery):
    """The recorded bytes are parsed later: redaction must not lose the prediction."""
    body = delivery["body"].encode()

    assert provider.parse_report(webhook_url_keys.redact_keys(body)) == provider.parse_report(body)


@each_delivery
def test_a_byte_order_mark_before_a_delivery_is_skipped(provider, delivery):
    """A correctly signed body is parsed."""
    body = delivery["body"].encode()

    assert provider.parse_report(b"\xef\xbb\xbf" + body) == provider.parse_report(body)


@each_delivery
def test_a_recorded_delivery_is_read_as_expected(provider, delivery):
    """Status, files with their paths in document order, problems with the host they name."""
    expect = delivery["expect"]

    report = provider.parse_report(delivery["body"].encode())

    assert (report.external_id, report.status, report.raw_status) == (
        expect["external_id"], expect["status"], expect["raw_status"],
    )  # fmt: skip
    assert report.data_removed is expect.get("data_removed", False)
    assert report.needs_fetch is expect.get("needs_fetch", False)
    assert report.error == expect.get("error")
    assert report.model == expect.get("model", report.model)
    if "expires_at" in expect:
        expires_at = compute_expiry(report, datetime(2100, 1, 1, tzinfo=UTC), provider.output_lifetime_seconds)
        assert expires_at == datetime.fromisoformat(expect["expires_at"])
    assert [found.path for found in report.outputs] == [one["path"] for one in expect["outputs"]]
    for found, one in zip(report.outputs, expect["outputs"], strict=True):
        assert found.url == one.get("url")
        assert (None if found.data is None else len(found.data)) == one.get("data_bytes")
        assert one["problem"] in (found.problem or "") if "problem" in one else found.problem is None


@each_delivery
def test_only_a_terminal_success_names_files(provider, delivery):
    """Files of earlier or failed answers are previews."""
    report = provider.parse_report(delivery["body"].encode())

    assert report.status == "succeeded" or not report.outputs


@each_delivery
@unhurried
@given(data=st.data())
def test_a_delivery_with_damage_is_read_or_refused(provider, delivery, data):
    """Whatever is signed reaches the parser: one bad delivery must not cost a worker."""
    body = bytearray(delivery["body"].encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body)))
        body[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))

    try:
        report = provider.parse_report(bytes(body))
    except (MalformedPayload, UnrelatedEvent):
        return
    assert all(map(is_storable, storable_parts(report)))


FIELDS = ("id", "status", "data", "output", "type", "error", "completed_at", "request_id", "payload", "payload_error")
HOSTILE = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": '{"id": "a"}'.encode("utf-16"),
    "no JSON": b"<html>502 Bad Gateway</html>",
    "cut": b'{"id": "a", "status": "succ',
    "null": b"null",
    "list": b"[]",
    "string": b'"text"',
    "empty object": b"{}",
    "nested brackets": b"[" * (16 * 2**20),
    "nested objects": b'{"data":' * 10**6,
    "endless integer": b'{"id": ' + b"9" * 10_000 + b"}",
}


@each_provider
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_body_that_is_no_delivery_is_unreadable_with_a_reason(provider, body):
    """It becomes a dead letter; 16 MB of brackets must not crash the worker."""
    with pytest.raises(MalformedPayload) as raised:
        provider.parse_report(body)

    assert 10 < len(str(raised.value)) < 400
    assert is_storable(str(raised.value))


@each_provider
@unhurried
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(FIELDS), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_parse_raises_only_malformed_payload_and_unrelated_event(provider, body):
    """Any bytes, and any JSON with the fields a dialect knows."""
    try:
        report = provider.parse_report(body)
    except (MalformedPayload, UnrelatedEvent):
        return
    assert all(map(is_storable, storable_parts(report)))
