"""Families of signatures beside Standard Webhooks `v1`: published vectors, rotation, no downgrade, hostile headers."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from moorage.errors import BadSignature, ConfigError, KeysStale
from providers.jwks import KeySet
from providers.signature_verifiers import DigestVerifier, HmacVerifier, StandardVerifier, TokenVerifier, Verifier
from providers.webhook_signing import split_standard_keys

VECTORS = json.loads((Path(__file__).parents[1] / "corpus/signatures.json").read_text())
NOW = 1_790_000_000
OLD, NEW, THIRD = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
SECRETS = [b"the secret of last year, 32 bytes", b"the secret of this year, 32 bytes"]
NAMES = [f"x-them-{part}" for part in ("request-id", "user-id", "timestamp", "signature")]
Signed = list[tuple[bytes, bytes]]


def verify(verifier: Verifier, headers: Signed, body: bytes = b"{}", now: float = NOW) -> str | None:
    return verifier.verify_body(verifier.check_headers(headers, now), body).webhook_id


def refusal(verifier: Verifier, headers: Signed, body: bytes = b"{}", now: float = NOW) -> str:
    with pytest.raises(BadSignature) as raised:
        verify(verifier, headers, body, now)
    assert raised.value.status == 401
    return str(raised.value)


def keys(*given: Ed25519PrivateKey) -> KeySet:
    return KeySet("their keys", fixed=[key.public_key() for key in given])


def standard(signature: bytes) -> Signed:
    return [(b"webhook-id", b"msg_1"), (b"webhook-timestamp", str(NOW).encode()), (b"webhook-signature", signature)]


def v1a(body: bytes = b"{}", key: Ed25519PrivateKey = NEW) -> bytes:
    return b"v1a," + base64.b64encode(key.sign(f"msg_1.{NOW}.".encode() + body))


def v1(body: bytes = b"{}", secret: bytes = SECRETS[1]) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(secret, f"msg_1.{NOW}.".encode() + body, "sha256"))


def hexed(body: bytes = b"{}", secret: bytes = SECRETS[1], algorithm: str = "sha256") -> bytes:
    return hmac.digest(secret, body, algorithm).hex().encode()


def timed(body: bytes = b"{}", at: int | str = NOW, secret: bytes = SECRETS[1]) -> bytes:
    return f"t={at},v0=".encode() + hexed(f"{at}.".encode() + body, secret)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda one: one["source"])
def test_published_vectors_match(vector):
    """And with one bit of the body changed they do not."""
    headers = [(name.encode(), value.encode()) for name, value in vector["headers"].items()]
    if vector["family"] == "standard":
        secrets, public = split_standard_keys([SecretStr(text) for text in vector["secrets"]], "TEST")
        verifier: Verifier = StandardVerifier(secrets, KeySet("their keys", fixed=public) if public else None)
    else:
        texts = [secret.encode() for secret in vector["secrets"]]
        verifier = HmacVerifier(texts, "x-signature", prefix=vector["prefix"], algorithm=vector["algorithm"])
    body = vector["body"].encode()

    verify(verifier, headers, body, vector["now"])
    refusal(verifier, headers, body[:-1] + bytes([body[-1] ^ 1]), vector["now"])


# --- Standard Webhooks v1a ----------------------------------------------------------------------------------------


def test_a_public_key_of_several_verifies_v1a():
    """Every live key counts, among signatures of others and of versions that do not exist."""
    verifier = StandardVerifier((), keys(OLD, NEW))

    for header in (v1a(), v1a(key=OLD), v1a(key=THIRD) + b" v2,x " + v1a(), b"v1," + v1a()[4:] + b" " + v1a()):
        assert verify(verifier, standard(header)) == "msg_1"
    assert "no key of their keys" in refusal(verifier, standard(v1a(key=THIRD)))
    assert "no key of their keys" in refusal(verifier, standard(v1a(b"{ }")))
    assert "no v1a signature" in refusal(verifier, standard(v1()))


def test_a_right_v1_does_not_rescue_a_wrong_v1a():
    """Whoever knows the shared secret must not be able to stand in for the private key."""
    both = StandardVerifier(SECRETS, keys(NEW))
    malformed = (b"v1a,", b"v1a,x", b"v1a,\xff", b"v1a," + b"A" * 88, v1a(key=THIRD), v1a() + b"=")

    assert verify(both, standard(v1() + b" " + v1a())) == verify(both, standard(v1())) == "msg_1"
    assert verify(both, standard(v1(secret=b"x" * 32) + b" " + v1a())) == "msg_1"
    for wrong in malformed:
        assert "no key of their keys" in refusal(both, standard(v1() + b" " + wrong))
        assert verify(StandardVerifier(SECRETS), standard(wrong + b" " + v1())) == "msg_1"  # it cannot be judged


def test_many_v1a_signatures_are_refused_unread():
    """Each costs a pass over the body per key: a forger must not choose how many."""
    assert "more than 4 v1a" in refusal(StandardVerifier((), keys(NEW)), standard(b" ".join([v1a()] * 5)))


def test_whpk_keys_stand_beside_secrets():
    """One setting holds both; what is neither refuses the start, without showing it."""
    public = "whpk_" + base64.b64encode(NEW.public_key().public_bytes_raw()).decode()
    secret = "whsec_" + base64.b64encode(SECRETS[0]).decode()

    secrets, public_keys = split_standard_keys([SecretStr(public), SecretStr(secret)], "TEST")

    assert secrets == (SECRETS[0],)
    assert public_keys == (NEW.public_key(),)
    for text in ("whpk_", "whpk_AAAA", "whpk_é", public + "AAAA", "whsk_" + public[5:]):
        with pytest.raises(ConfigError, match="TEST") as raised:
            split_standard_keys([SecretStr(text)], "TEST")
        assert text == "whpk_" or text not in str(raised.value)


def test_a_set_of_keys_serves_v1a_after_it_was_fetched():
    """Nothing is judged before: a 401 would make the sender give up."""
    fetched = KeySet("their keys", ["https://them.example/jwks.json"])
    verifier = StandardVerifier((), fetched)
    with pytest.raises(KeysStale):
        verify(verifier, standard(v1a()))
    x = base64.urlsafe_b64encode(NEW.public_key().public_bytes_raw()).rstrip(b"=").decode()
    fetched.replace_keys(json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).encode())

    assert verify(verifier, standard(v1a())) == "msg_1"
    refusal(verifier, standard(v1a(key=OLD)))


# --- Ed25519 over a digest --------------------------------------------------------------------------------------


def digest(body: bytes = b"{}", *, names: list[str] = NAMES, key: Ed25519PrivateKey = NEW, user: str = "u1") -> Signed:
    parts = [b"r1", user.encode(), str(NOW).encode()]
    signature = key.sign(b"\n".join([*parts, hashlib.sha256(body).hexdigest().encode()])).hex().encode()
    return [(name.encode(), value) for name, value in zip(names, [*parts, signature], strict=True)]


def test_the_header_names_of_a_digest_signature_are_given():
    """Ideogram signs as fal does, under other names."""
    verifier = DigestVerifier(keys(OLD, NEW), NAMES, users=["u1"], sender="them")

    assert verify(verifier, digest()) is None
    assert "x-them-request-id is missing" in refusal(
        verifier, digest(names=[name.replace("them", "us") for name in NAMES])
    )
    assert "another user of them: u2" in refusal(verifier, digest(user="u2"))
    refusal(verifier, digest(key=THIRD))


# --- HMAC in hex ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "sha256=", "v0="])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_each_live_secret_signs_a_body_in_hex(prefix, algorithm):
    """Digits of either case; the prefix must be the one that was declared."""
    verifier = HmacVerifier(SECRETS, "x-sig", prefix=prefix, algorithm=algorithm)

    for secret in SECRETS:
        signature = hexed(b"\xff", secret, algorithm)
        for text in (signature, signature.upper(), signature + b", " + prefix.encode() + b"0" * len(signature)):
            assert verify(verifier, [(b"X-Sig", prefix.encode() + text)], b"\xff") is None
    assert "no signature" in refusal(verifier, [(b"x-sig", prefix.encode() + hexed(algorithm=algorithm))], b"{ }")


BODY_CASES = [
    b"", b"sha256=", b"sha256", b"=", b",", b"sha1=" + hashlib.sha1(b"{}").hexdigest().encode(), b"v1=" + hexed(),
    hexed(), b"sha256=" + hexed()[:-1], b"sha256=" + hexed() + b"0", b"sha256=" + b"g" * 64, b"sha256=\xff",
    b"SHA256=" + hexed(), b"sha256= " + hexed(), b"sha256=" + hexed(algorithm="sha512"), b"sha256=" + hexed(b"x"),
    b"v0=" + hexed() + b",sha256=" + hexed(b"x"),
]  # fmt: skip


@pytest.mark.parametrize("value", BODY_CASES)
def test_another_form_of_hex_is_a_clean_refusal(value):
    """A right code under another prefix or algorithm rescues nothing."""
    assert refusal(HmacVerifier(SECRETS, "x-sig", prefix="sha256="), [(b"x-sig", value)])


@pytest.mark.parametrize("age", [-300, 0, 1800])
def test_a_time_stamp_in_the_signature_is_signed_and_fresh(age):
    """ElevenLabs: 30 minutes into the past."""
    verifier = HmacVerifier(SECRETS, "x-sig", prefix="v0=", is_timed=True, tolerance_seconds=1800)
    at = NOW - age

    assert verify(verifier, [(b"x-sig", timed(at=at))]) is None
    assert verify(verifier, [(b"x-sig", timed(at=at, secret=SECRETS[0]) + b",v0=" + b"0" * 64)]) is None
    assert "no signature" in refusal(verifier, [(b"x-sig", timed(b"x", at=at))])
    if age:
        step = age // abs(age)
        assert "more than" in refusal(verifier, [(b"x-sig", timed(at=at - step))])


TIMED_CASES = [
    b"", b"t=", b"v0=" + hexed(), timed() + f",t={NOW}".encode(), f"t={NOW}".encode(), timed(at=f"0{NOW}"),
    timed(at=f"+{NOW}"), timed(at="hello"), timed(at=f"{NOW}.5"), timed(at="9" * 30), timed().replace(b"v0=", b"v1="),
    timed().replace(f"t={NOW}".encode(), f"t={NOW + 1}".encode()), b"t=\xff,v0=" + hexed(),
]  # fmt: skip


@pytest.mark.parametrize("value", TIMED_CASES)
def test_another_form_of_a_timed_signature_is_a_clean_refusal(value):
    """The time is signed as text: a second spelling of it would be a second signature."""
    assert refusal(HmacVerifier(SECRETS, "x-sig", prefix="v0=", is_timed=True), [(b"x-sig", value)])


# --- a static token ---------------------------------------------------------------------------------------------


def test_a_token_is_compared_whole():
    """Leonardo sends Bearer, AssemblyAI a header of one's own."""
    bearer = TokenVerifier([b"one", b"two"], "authorization", scheme="Bearer")

    assert verify(bearer, [(b"Authorization", b"Bearer two")]) is None
    assert verify(TokenVerifier([b"one"], "x-key"), [(b"x-key", b"one")]) is None
    for value in (b"two", b"bearer two", b"Bearer tw", b"Bearer two ", b"Bearer", b"", b"\xff"):
        assert "not a current token" in refusal(bearer, [(b"authorization", value)])
    assert "occurs 2 times" in refusal(bearer, [(b"authorization", b"Bearer one")] * 2)


ALL = [
    StandardVerifier(SECRETS, keys(NEW)),
    DigestVerifier(keys(NEW), NAMES),
    HmacVerifier(SECRETS, "x-sig", prefix="sha256="),
    HmacVerifier(SECRETS, "x-sig", prefix="v0=", is_timed=True),
    TokenVerifier(SECRETS, "authorization"),
]
_VALUES: list[Any] = [b"v1a,\xff", b"t=1,v0=", b"sha256=", str(NOW).encode(), b"a" * 64, b"0" * 128, v1a()]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_bytes_do_more_than_fail(data):
    """Verifiers stand at the open door: an exception there is a 500, and a sender stops."""
    names = [b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"x-sig", b"authorization"]
    names += [name.encode() for name in NAMES]
    value = st.binary(max_size=40) | st.sampled_from(_VALUES)
    headers = data.draw(st.lists(st.tuples(st.sampled_from(names), value), max_size=6))

    for verifier in ALL:
        with pytest.raises(BadSignature):
            verify(verifier, headers, b"another body")
