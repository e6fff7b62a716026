"""Signatures and retries of the stand-in's webhooks, the summary of its ledger, and its imports."""

import json
import subprocess
import sys
import time

import pytest
from standardwebhooks import Webhook

from simulation.provider import ledger, webhooks

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_signature_matches_the_published_vector():
    """Two ends by one author could share an error; this vector is published."""
    signature = webhooks.sign(_SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')

    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_reference_library_accepts_a_signed_body():
    """Verified by the library of Standard Webhooks."""
    now, body = str(int(time.time())), json.dumps({"output": "é"}, ensure_ascii=False).encode()
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": now,
        "webhook-signature": webhooks.sign(_SECRET, "msg_1", now, body),
    }

    assert Webhook(_SECRET).verify(body.decode(), headers) == {"output": "é"}


@pytest.mark.parametrize(
    ("life_s", "expected"),
    [
        (0, [0.0]),
        (1.2, [0.0, 0.5, 1.2]),
        (60, [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 60]),
    ],
)
def test_waits_double_and_the_last_attempt_is_at_the_end_of_life(life_s, expected):
    """Replicate: exponential, the final retry about one minute after completion."""
    assert webhooks.attempt_offsets(life_s) == expected


def test_the_summary_lists_an_accepted_forgery():
    """A receiver that accepts a wrong signature must be noticed."""
    attempt = {"kind": "webhook", "prediction": "p", "event": "completed", "status": "succeeded"}
    lines = [
        {**attempt, "webhook_id": "a", "signed": False, "http_status": 202},
        {**attempt, "webhook_id": "b", "signed": True, "http_status": 503},
        {**attempt, "webhook_id": "b", "signed": True, "http_status": 202},
        {**attempt, "webhook_id": "c", "signed": True, "http_status": None},
    ]

    summary = ledger.summarise(lines)

    assert summary["wrongly_signed_accepted"] == ["a"]
    assert list(summary["acknowledged"]) == ["b"]
    assert sorted(summary["unacknowledged"]) == ["a", "c"]


def test_the_stand_in_imports_no_product_package():
    """Shared code would make both sides wrong in the same way."""
    packages = ("moorage", "providers", "storage", "media", "egress", "db", "tasks", "worker", "receiver", "web")
    program = (
        f"import sys, simulation.provider.__main__\nprint([m for m in sys.modules if m.split('.')[0] in {packages!r}])"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
