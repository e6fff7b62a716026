"""Keys in webhook URLs: hashed the same way wherever they are read."""

import pytest

from moorage import webhook_url_keys

KEY = "Xq3_single-use-key_Zw9".ljust(43, "x")


def test_every_reader_of_a_url_gets_the_hash_that_was_stored():
    """The receiver reads a query, recovery reads the URL that the provider lists."""
    url = webhook_url_keys.build_webhook_url("https://us.example/", "fal", KEY)

    assert url == f"https://us.example/webhooks/fal?key={KEY}"
    assert webhook_url_keys.hash_key_in_url(url) == webhook_url_keys.hash_key(KEY)
    assert webhook_url_keys.hash_key_in_query(f"a=1&key={KEY}") == webhook_url_keys.hash_key(KEY)


@pytest.mark.parametrize(
    "url", [None, "", "https://us.example/webhooks/fal", "https://[bad", "https://us.example/?key="]
)
def test_url_without_a_key_has_no_hash(url):
    """A provider's list may contain any text as a URL."""
    assert webhook_url_keys.hash_key_in_url(url) is None


def test_new_key_has_the_length_that_is_redacted():
    key = webhook_url_keys.create_url_key()
    body = webhook_url_keys.build_webhook_url("https://us.example", "fal", key).encode()

    assert webhook_url_keys.redact_keys(body) == body.replace(key.encode(), b"*" * 43)
