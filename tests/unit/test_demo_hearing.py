"""What the demo's application understands of what it hears: signatures of webhooks, blocks of the stream."""

import base64
import uuid

import pytest

from simulation.demo import event_stream, webhook_listener
from tasks import notifications

KEY, OTHER = b"the key of this application", b"the key of somebody else..."
NOW = 1_790_000_000
BODY = b'{"type":"job.failed"}'


def sent(body: bytes = BODY, at: int = NOW, *keys: bytes) -> dict[str, str]:
    """Return the headers that moorage sends, by lower-case name."""
    headers = notifications.build_headers(uuid.UUID(int=7), body, at, keys or (KEY,))
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize("keys", [(KEY,), (OTHER, KEY)], ids=["one key", "while a key is exchanged"])
def test_a_webhook_that_moorage_signed_is_believed(keys):
    """Two writings of one standard that do not know each other have to agree."""
    assert webhook_listener.is_signed(KEY, sent(BODY, NOW, *keys), BODY, NOW + 5.0)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (sent(BODY, NOW, OTHER), BODY),
        (sent(), BODY + b" "),
        (sent() | {"webhook-id": "another"}, BODY),
        (sent() | {"webhook-timestamp": str(NOW + 1)}, BODY),
        (sent(BODY, NOW - 301), BODY),
        (sent() | {"webhook-timestamp": "soon"}, BODY),
        (sent() | {"webhook-signature": "v1," + base64.b64encode(b"guessed").decode()}, BODY),
        ({}, BODY),
    ],
    ids=["another key", "another body", "another id", "another time", "old", "no time", "guessed", "unsigned"],
)
def test_a_webhook_that_moorage_did_not_sign_so_is_not_believed(headers, body):
    """A demo that believes everybody does not show that anything is signed."""
    assert not webhook_listener.is_signed(KEY, headers, body, NOW)


def test_blocks_of_the_stream_are_read_without_comments_and_without_what_was_cut_off():
    """An id whose data never came must not count as seen, or the event is lost at the next connection."""
    lines = b": moorage\nretry: 2000\nid: 4\n\nid: 5\nevent: job\ndata: {}\n\n: nothing new\nid: 6\n\nid: 7\neve"

    read = list(event_stream.blocks(lines.splitlines(keepends=True)))

    assert read == [{"retry": "2000", "id": "4"}, {"id": "5", "event": "job", "data": "{}"}, {"id": "6"}]
