"""How the stand-in signs, when it tries again, what its ledger adds up to, and what it may load."""

import json
import subprocess
import sys
import time

import pytest
from standardwebhooks import Webhook

from simulation.provider import ledger, webhooks

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_signature_is_that_of_the_public_vector():
    """Both ends of a test written by one hand prove nothing; this vector is published."""
    signed = webhooks.sign(_SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')

    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_reference_library_accepts_a_signed_body():
    """Standard Webhooks' own verifier is the judge."""
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
def test_waits_double_and_the_last_attempt_comes_at_the_end(life_s, expected):
    """Replicate: exponential, the final retry about one minute after completion."""
    assert webhooks.offsets(life_s) == expected


def test_the_summary_tells_an_accepted_forgery():
    """A receiver that takes a wrong signature must be seen, though it answered 202."""
    attempt = {"kind": "webhook", "prediction": "p", "event": "completed", "status": "succeeded"}
    lines = [
        {**attempt, "webhook_id": "a", "signed": False, "answer": 202},
        {**attempt, "webhook_id": "b", "signed": True, "answer": 503},
        {**attempt, "webhook_id": "b", "signed": True, "answer": 202},
        {**attempt, "webhook_id": "c", "signed": True, "answer": None},
    ]

    summary = ledger.summarise(lines)

    assert summary["wrongly_signed_accepted"] == ["a"]
    assert list(summary["acknowledged"]) == ["b"]
    assert sorted(summary["unacknowledged"]) == ["a", "c"]


def test_the_stand_in_loads_nothing_of_what_it_tries():
    """Shared lines would make both sides wrong in the same way."""
    rooms = ("moorage", "providers", "storage", "media", "egress", "db", "tasks", "worker", "receiver", "web")
    program = (
        "import sys, simulation.provider.__main__, simulation.provider.client\n"
        f"print([m for m in sys.modules if m.split('.')[0] in {rooms!r}])"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"
