"""The demo's verification of webhook signatures, and its parser of the event stream."""

import base64
import uuid

import pytest

from simulation.demo import event_stream, webhook_listener
from tasks import notifications

KEY, OTHER = b"the key of this application", b"the key of another one....."
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_790_000_000
BODY = b'{"type":"job.failed"}'


def sign(body: bytes = BODY, now: int = NOW, *keys: bytes) -> dict[str, str]:
    """Return the headers that moorage sends, by lower-case name."""
    headers = notifications.build_headers(uuid.UUID(int=7), body, now, keys or (KEY,))
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("keys", [(KEY,), (OTHER, KEY)], ids=["one key", "during rotation"])
def test_a_webhook_signed_by_moorage_is_accepted(keys):
    """Two independent implementations of the standard must agree."""
    assert webhook_listener.is_signed(SECRET, sign(BODY, NOW, *keys), BODY, NOW + 5.0)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (sign(BODY, NOW, OTHER), BODY),
        (sign(), BODY + b" "),
        (sign() | {"webhook-id": "another"}, BODY),
        (sign() | {"webhook-timestamp": str(NOW + 1)}, BODY),
        (sign(BODY, NOW - 301), BODY),
        (sign() | {"webhook-timestamp": "soon"}, BODY),
        (sign() | {"webhook-signature": "v1," + base64.b64encode(b"guessed").decode()}, BODY),
        ({}, BODY),
    ],
    ids=["another key", "another body", "another id", "another time", "old", "no time", "guessed", "unsigned"],
)
def test_a_webhook_with_a_wrong_signature_is_rejected(headers, body):
    """A demo that accepts everything does not show that webhooks are signed."""
    assert not webhook_listener.is_signed(SECRET, headers, body, NOW)


def test_blocks_of_the_stream_are_parsed_without_comments_and_incomplete_blocks():
    """An id whose data was not received must not count, or the event is lost at the next connection."""
    lines = b": moorage\nretry: 2000\nid: 4\n\nid: 5\nevent: job\ndata: {}\n\n: nothing new\nid: 6\n\nid: 7\neve"

    blocks = list(event_stream.parse_blocks(lines.splitlines(keepends=True)))

    assert blocks == [{"retry": "2000", "id": "4"}, {"id": "5", "event": "job", "data": "{}"}, {"id": "6"}]
