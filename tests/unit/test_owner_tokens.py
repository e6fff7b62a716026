"""Owner tokens: what was signed is read, and nothing else."""

import base64
import hmac
from datetime import UTC, datetime
from uuid import UUID

import pytest
from pydantic import SecretStr

from moorage import ids, owner_tokens
from moorage.errors import ConfigError
from moorage.owner_tokens import InvalidToken, OwnerToken
from moorage.settings import Settings, load_settings

KEY = b"k" * 32
NOW = 1_800_000_000.0


def settings(**given: str) -> Settings:
    return load_settings(_env_file=None, database_url="postgresql://u@127.0.0.1/x", broker_url="memory://", **given)


@pytest.mark.parametrize("owner", ["a", "ada", "é" * 200, "🏠" * 200, "a b/c;d=e,\x01"])
def test_what_was_signed_is_read(owner: str) -> None:
    """An owner is any text that an application uses; the token stands in a header and a cookie all the same."""
    token = OwnerToken(owner, int(NOW) + 1, frozenset({"read", "delete"}))
    text = owner_tokens.encode(KEY, token)

    assert owner_tokens.decode(KEY, text, NOW) == token
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def test_every_changed_byte_is_refused() -> None:
    """Version, expiry, owner and signature: a change would grant another owner, or unlimited access."""
    text = owner_tokens.encode(KEY, OwnerToken("ada", int(NOW) + 60))
    raw = bytearray(base64.urlsafe_b64decode(text.removeprefix("mro_") + "=="))

    for n in range(len(raw)):
        changed = raw[:n] + bytes([raw[n] ^ 1]) + raw[n + 1 :]
        forged = "mro_" + base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
        with pytest.raises(InvalidToken, match="is not valid"):
            owner_tokens.decode(KEY, forged, NOW)


@pytest.mark.parametrize("text", ["", "mro_", "ada", "mro_!!", "mro_é", "mro_A", "mro_" + "A" * 3000])
def test_what_is_no_token_is_refused_as_such(text: str) -> None:
    """Whatever a header holds, the answer is a refusal and no error of ours."""
    with pytest.raises(InvalidToken):
        owner_tokens.decode(KEY, text, NOW)


def test_a_token_of_version_1_reads_and_creates_jobs() -> None:
    """Browsers hold such tokens for up to a day after the upgrade."""
    payload = b"\x01" + (int(NOW) + 9).to_bytes(8, "big") + b"ada"
    signed = payload + hmac.digest(KEY, payload, "sha256")
    text = "mro_" + base64.urlsafe_b64encode(signed).rstrip(b"=").decode()

    token = owner_tokens.decode(KEY, text, NOW)

    assert (token.owner, token.until, token.scopes) == ("ada", int(NOW) + 9, {"read", "jobs"})
    assert not token.is_revoked({})
    assert token.is_revoked({owner_tokens.owner_subject("ada"): datetime.fromtimestamp(0, UTC)})


def test_a_revocation_refuses_what_was_issued_until_then() -> None:
    """A new token of the same owner must work at once, and the tokens of others all the time."""
    old, new = (OwnerToken("ada", int(NOW), token_id=ids.uuid7(ms)) for ms in (1_000, 1_001))
    of_owner = {owner_tokens.owner_subject("ada"): datetime.fromtimestamp(1, UTC)}
    of_token = {owner_tokens.token_subject(new.token_id or UUID(int=0)): datetime.fromtimestamp(0, UTC)}

    assert (old.is_revoked(of_owner), new.is_revoked(of_owner)) == (True, False)
    assert (old.is_revoked(of_token), new.is_revoked(of_token)) == (False, True)
    assert not OwnerToken("bob", int(NOW), token_id=old.token_id).is_revoked(of_owner)


def test_a_token_ends_to_the_second_and_with_its_key() -> None:
    """A new secret ends all tokens at once: the way out when one was lost."""
    text = owner_tokens.encode(KEY, OwnerToken("ada", int(NOW)))

    assert owner_tokens.decode(KEY, text, NOW - 0.001).owner == "ada"
    with pytest.raises(InvalidToken, match="expired"):
        owner_tokens.decode(KEY, text, NOW)
    with pytest.raises(InvalidToken, match="is not valid"):
        owner_tokens.decode(b"x" * 32, text, NOW - 1)


def test_key_is_derived_from_the_secret_else_from_the_api_token() -> None:
    """It is never the token itself: a leaked key must not open the API."""
    token, secret = "t" * 40, "s" * 40

    of_token = owner_tokens.derive_signing_key(settings(api_token=token))
    of_both = owner_tokens.derive_signing_key(settings(api_token=token, owner_token_secret=secret))

    assert owner_tokens.derive_signing_key(settings()) is None
    assert of_both == owner_tokens.derive_signing_key(settings(owner_token_secret=secret))
    assert len({of_token, of_both, token.encode(), secret.encode()}) == 4
    assert SecretStr(secret).get_secret_value() not in repr(settings(owner_token_secret=secret))


@pytest.mark.parametrize(("name", "value"), [("owner_token_secret", "short"), ("owner_token_seconds", "86401")])
def test_a_weak_secret_and_a_long_life_are_refused(name: str, value: str) -> None:
    """A token that a browser holds is short-lived, and must not be guessed from a short secret."""
    with pytest.raises(ConfigError, match=f"MOORAGE_{name.upper()}"):
        settings(**{name: value})
