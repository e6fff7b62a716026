"""What is particular to fal.ai: whose webhooks count, when its keys are fetched, and what it may not be asked."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import providers
from moorage.errors import BadSignature, ConfigError, KeysStale, MalformedPayload, ProviderRefused
from moorage.settings import Settings
from providers.fal import Fal
from providers.jwks import parse_ed25519_keys
from tests.support.fal_signing import FORGER, KEY, NOW, SECOND, jwk, jwks, sign

BASE = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
BODY = b'{"request_id": "r1", "status": "OK", "payload": {"seed": 196619188014358660, "images": []}}'


def fal(**given: object) -> Fal:
    constants = {"fal_jwks_url": (given.pop("fal_jwks_url"),)} if "fal_jwks_url" in given else {}
    settings = Settings(_env_file=None, **BASE, **{"fal_key": "id:key", **given}).with_constants(**constants)
    provider = providers.load(settings)["fal"]
    assert isinstance(provider, Fal)
    return provider


def with_keys(*keys: Ed25519PrivateKey, **given: object) -> Fal:
    provider = fal(**given)
    provider.key_set.replace_keys(jwks(*keys))
    return provider


# --- verify -----------------------------------------------------------------------------------------------------


def test_any_key_of_the_set_may_have_signed():
    """A request names no key: during a rotation the second is as good as the first."""
    provider = with_keys(SECOND, KEY)

    assert provider.verify(sign(BODY), BODY, NOW) == provider.verify(sign(BODY, key=SECOND), BODY, NOW)


@pytest.mark.parametrize("seconds", [-300, 300])
def test_a_time_stamp_may_be_300_seconds_off(seconds):
    """Clocks differ; a second more is a replay."""
    provider = with_keys(KEY)

    provider.verify(sign(BODY, at=NOW + seconds), BODY, NOW)

    with pytest.raises(BadSignature, match="more than 300 s"):
        provider.verify(sign(BODY, at=NOW + seconds + seconds // 300), BODY, NOW)


@pytest.mark.parametrize("timestamp", ["", "hello", "1.5", "-1", "1" * 30, "\uff11\uff17"])
def test_a_time_stamp_that_is_none_is_refused(timestamp):
    """It is signed as text: what is no number would be read by each reader in its own way."""
    with pytest.raises(BadSignature):
        with_keys(KEY).verify(sign(BODY, timestamp=timestamp), BODY, NOW)


@pytest.mark.parametrize("signature", [b"", b"zz" * 64, b"ab" * 63, b"ab" * 65, b"\xff" * 128, b"00" * 64])
def test_a_signature_of_another_form_is_refused(signature):
    """Whatever stands there: a clean no, never an exception."""
    headers = [*sign(BODY)[:3], (b"x-fal-webhook-signature", signature)]

    with pytest.raises(BadSignature):
        with_keys(KEY).verify(headers, BODY, NOW)


def test_no_newline_can_move_the_borders_of_what_is_signed():
    """A user id "b\\n1790000000" would make one signature good for two requests."""
    with pytest.raises(BadSignature, match="character that is invalid in an id"):
        with_keys(KEY).verify(sign(BODY, request_id="a\nb"), BODY, NOW)


def test_only_the_named_users_webhooks_are_taken():
    """fal signs everybody's webhooks with the same keys: a stranger's are rightly signed too."""
    provider = with_keys(KEY, fal_user_id="me,my-team")

    provider.verify(sign(BODY, user="my-team"), BODY, NOW)

    with pytest.raises(BadSignature, match="another user of fal"):
        provider.verify(sign(BODY, user="stranger"), BODY, NOW)


@pytest.mark.parametrize(
    ("given", "enabled"), [({}, True), ({"fal_key": None}, False), ({"fal_key": None, "fal_user_id": "me"}, True)]
)
def test_a_key_or_a_user_opens_the_door(given, enabled):
    """The public keys alone must not: every customer of fal could then write here."""
    assert fal(**given).is_enabled is enabled


# --- when the keys are fetched ----------------------------------------------------------------------------------


def test_without_keys_nothing_is_judged():
    """A 401 would make fal give up what is rightly signed; a 503 has it sent again."""
    with pytest.raises(KeysStale):
        fal().verify(sign(BODY), BODY, NOW)


def test_an_invalid_delivery_triggers_no_fetch_of_keys():
    """A stale or malformed request is refused without a word to fal."""
    with pytest.raises(BadSignature):
        fal().verify(sign(BODY, at=NOW - 301), BODY, NOW)


def test_a_failed_check_right_after_a_fetch_is_a_forgery():
    """Else each forged webhook would cause a fetch."""
    with pytest.raises(BadSignature):
        with_keys(KEY).verify(sign(BODY, key=FORGER), BODY, NOW)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [{"kty": "RSA", "n": "x"}]}',
     b'{"keys": [null, 1, {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}]}',
     b'{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "\xc3\xa9"}]}',
     json.dumps({"keys": [jwk(KEY)] * 33}).encode()],
)  # fmt: skip
def test_what_is_no_set_of_keys_leaves_those_there_are(document):
    """An error page in place of the set must not shut the door."""
    provider = with_keys(KEY)

    with pytest.raises(MalformedPayload):
        provider.key_set.replace_keys(document)

    provider.verify(sign(BODY), BODY, NOW)


def test_other_kinds_of_keys_in_the_set_are_passed_over():
    """A set may hold what is not for us."""
    assert len(parse_ed25519_keys(json.dumps({"keys": [{"kty": "RSA"}, jwk(KEY)]}).encode())) == 1


# --- settings and addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["fal_jwks_url", "fal_queue_url"])
@pytest.mark.parametrize("url", ["http://rest.fal.example/jwks.json", "https://user:word@rest.fal.ai/"])
def test_keys_and_token_travel_safely_or_not_at_all(setting, url):
    """Who can write the keys can sign; who can read the token can spend."""
    with pytest.raises(ConfigError, match=setting.upper()):
        fal(**{setting: url})


@pytest.mark.parametrize("model", [None, "", "flux", "fal-ai/../x", "a/b c", "..", "workflows/me"])
def test_fal_receives_no_request_without_a_valid_model(model):
    """The model is application input: it must not send our key to another endpoint."""
    with pytest.raises(ProviderRefused, match="model"):
        fal().poll("r1", model)


@pytest.mark.parametrize("external_id", ["", ".", ".."])
def test_an_id_that_is_not_a_path_segment_is_not_requested(external_id):
    """These would ask about something else."""
    with pytest.raises(ProviderRefused, match="is not the id of a prediction"):
        fal().poll(external_id, "fal-ai/flux")


def test_without_a_key_fal_cannot_be_polled():
    """The message names the missing setting."""
    provider = fal(fal_key=None)

    assert not provider.can_poll
    with pytest.raises(ProviderRefused, match="FAL_KEY"):
        provider.poll("r1", "fal-ai/flux")


def test_a_wrong_key_is_refused_at_the_start_and_not_shown():
    """A line break from a copied file would split the header."""
    with pytest.raises(ConfigError, match="FAL_KEY") as raised:
        fal(fal_key="id:hunter2\nx")

    assert "hunter2" not in str(raised.value)
