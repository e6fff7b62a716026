"""
What every provider must do, whatever its dialect: built-in, of the catalog, or declared.

A new provider adds its signer to SIGNERS, its settings to SETTINGS and a URL it may fetch to ALLOWED. What it reads in
recorded deliveries is in `test_provider_deliveries.py`, how it takes orders in `integration/test_provider_submit.py`.
"""

import base64
import hashlib
import hmac
import json
import re
import tempfile
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import providers
from moorage.errors import BadSignature, ConfigError, ProviderRefused
from moorage.provider_types import SubmitRequest, VerifiedDelivery
from moorage.setting_types import IN_FLIGHT
from moorage.settings import Settings
from moorage.text import is_storable
from tests.support import declared

# The computer is shared; and there are a dozen kinds of signature, each of them tried so often.
unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
NOW = 1_790_000_000
OLD, NEW = b"the secret of last year, 32 bytes", b"the secret of this year, 32 bytes"
TOKEN = "r8_a_token_that_must_not_leak"


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def sign_standard(body: bytes, *, key: bytes = NEW, at: int = NOW, name: str = "msg_1") -> list[tuple[bytes, bytes]]:
    digest = hmac.digest(key, f"{name}.{at}.".encode() + body, "sha256")
    return [
        (b"webhook-id", name.encode()),
        (b"webhook-timestamp", str(at).encode()),
        (b"webhook-signature", b"v1," + base64.b64encode(digest)),
    ]


def ed25519(key: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(key).digest())


FAL_HEADERS = [f"x-fal-webhook-{part}".encode() for part in ("request-id", "user-id", "timestamp", "signature")]
IDEOGRAM_HEADERS = [
    f"x-ideogram-webhook-{part}".encode() for part in ("generation-id", "user-id", "timestamp", "signature")
]


def sign_digest(names: list[bytes], body: bytes, *, key: bytes = NEW, at: int = NOW) -> list[tuple[bytes, bytes]]:
    parts = (b"request_1", b"user_1", str(at).encode())
    signature = ed25519(key).sign(b"\n".join((*parts, hashlib.sha256(body).hexdigest().encode()))).hex().encode()
    return list(zip(names, (*parts, signature), strict=True))


def sign_v1a(body: bytes, *, key: bytes = NEW, at: int = NOW) -> list[tuple[bytes, bytes]]:
    """As Gemini signs the webhooks of a request."""
    *signed, (name, _) = sign_standard(body, at=at)
    signature = ed25519(key).sign(f"msg_1.{at}.".encode() + body)
    return [*signed, (name, b"v1a," + base64.b64encode(signature))]


def sign_bfl(body: bytes, *, key: bytes = NEW) -> list[tuple[bytes, bytes]]:
    return [(b"x-bfl-signature", b"sha256=" + hmac.digest(key, body, "sha256").hex().encode())]


def sign_timed(body: bytes, *, key: bytes = NEW, at: int = NOW) -> list[tuple[bytes, bytes]]:
    digest = hmac.digest(key, f"{at}.".encode() + body, "sha256").hex()
    return [(b"x-timed-signature", f"t={at},v0={digest}".encode())]


def show_token(body: bytes, *, key: bytes = NEW) -> list[tuple[bytes, bytes]]:  # it signs nothing
    return [(b"authorization", b"Bearer " + key)]


def jwks(*keys: bytes) -> bytes:
    raw = [ed25519(key).public_key().public_bytes_raw() for key in keys]
    texts = [base64.urlsafe_b64encode(one).rstrip(b"=").decode() for one in raw]
    return json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": text} for text in texts]}).encode()


SIGNERS = {
    "bearer": show_token,
    "bfl": sign_bfl,
    "cog": sign_standard,
    "fal": partial(sign_digest, FAL_HEADERS),
    "gemini": sign_v1a,
    "ideogram": partial(sign_digest, IDEOGRAM_HEADERS),
    "openai": sign_standard,
    "queue": partial(sign_digest, FAL_HEADERS),
    "replicate": sign_standard,
    "standard": sign_standard,
    "timed": sign_timed,
    "together": sign_standard,
}
UNSIGNED = {"luma", "runpod"}  # a body is only a reason to poll
POLLED = {"runway"}
WITH_PUBLIC_KEYS = {"gemini", "ideogram", "queue"}  # always verified: the keys are fetched
TIMELESS = {"bearer", "bfl"}  # nothing signed is a time
ALLOWED = {
    "fal": "https://v3.fal.media/files/b/a.png",
    "replicate": "https://replicate.delivery/a.png",
}
SETTINGS = {
    "database_url": "postgresql://moorage@localhost/moorage",
    "broker_url": "redis://localhost",
    "egress_allow": "127.0.0.1:8081",
    "fal_key": "key_id:key_that_must_not_leak",
    "fal_user_id": "user_1",
    "openai_webhook_secret": f"{whsec(OLD)},{whsec(NEW)}",
    "openai_api_key": TOKEN,
    "openai_output_hosts": "files.example",
    "replicate_webhook_secret": f"{whsec(OLD)},{whsec(NEW)}",
    "replicate_api_token": TOKEN,
    "standard_webhook_secret": f"{whsec(OLD)}, {whsec(NEW)}",
    "standard_output_hosts": "files.example",
}
_FOLDER = tempfile.TemporaryDirectory()
DECLARED = declared.write_file(Path(_FOLDER.name) / "providers.toml")
VARIABLES = declared.find_variables(DECLARED)


def load(*, without=(), **changes):
    """Load every provider; `without`: "tokens" or "secrets" that are not set, in settings and in variables."""
    endings = {"tokens": ("_key", "_token"), "secrets": ("secret", "fal_key", "fal_user_id")}
    hidden = tuple(ending for kind in without for ending in endings[kind])
    given = {key: value for key, value in SETTINGS.items() if not (hidden and key.endswith(hidden))}
    with pytest.MonkeyPatch.context() as patch:
        for kind, names in VARIABLES.items():
            for name in () if kind in without else names:
                key = OLD if name.startswith("OLD") else NEW
                secret = whsec(key) if "GEMINI" in name or "WHSEC" in name else key.decode()
                patch.setenv(name, TOKEN if kind == "tokens" else secret)
        constants = {name: changes.pop(name) for name in ("poll_first_seconds",) if name in changes}
        values = {"providers_file": DECLARED, **given, **changes}
        return providers.load(Settings(_env_file=None, **values).with_constants(**constants))


LOADED = load()
each_provider = pytest.mark.parametrize("provider", LOADED.values(), ids=lambda one: one.name)
each_signing = pytest.mark.parametrize("provider", [LOADED[name] for name in SIGNERS], ids=lambda one: one.name)


def allowed(provider):
    return ALLOWED.get(provider.name, declared.FILE)


@pytest.fixture(scope="module", autouse=True)
def _public_keys():
    """Freshly fetched keys: these tests send no requests."""
    for provider in LOADED.values():
        keys = getattr(provider.verifier, "key_set", None) or getattr(provider.verifier, "_keys", None)
        if keys:
            keys.replace_keys(jwks(OLD, NEW))


def test_every_provider_is_in_this_suite():
    """A provider outside it is untested."""
    assert set(LOADED) == set(SIGNERS) | UNSIGNED | POLLED
    assert {path.stem for path in declared.CATALOG} < set(LOADED)


# --- the contract -----------------------------------------------------------------------------------------------


@each_provider
def test_the_names_and_numbers_of_the_contract_hold(provider):
    """What the receiver and the steps count on."""
    assert provider.name == provider.name.lower()
    assert provider.is_enabled is (provider.name not in POLLED)
    assert provider.sends_webhooks is (provider.name not in POLLED)
    assert 200 <= provider.known_delivery_status <= provider.new_delivery_status < 300
    assert provider.output_lifetime_seconds is None or provider.output_lifetime_seconds > 0


@each_provider
def test_polls_grow_apart_but_stay_well_inside_the_life_of_an_output(provider):
    """A poll after the files died saves nothing."""
    waits = [provider.first_poll_seconds(), *(provider.next_poll_seconds(polls) for polls in range(1, 2000))]

    assert waits == sorted(waits)
    assert 0 < waits[0] <= waits[3]
    assert waits[-1] <= (provider.output_lifetime_seconds or 3600) / 10


@pytest.mark.parametrize("name", list(LOADED))
def test_the_setting_of_the_first_poll_draws_the_later_ones_along(name):
    """A demonstration that polls after 2 s must not wait a minute for its second poll."""
    quick, slow = (load(poll_first_seconds=seconds)[name] for seconds in (2, 1000))

    assert (quick.first_poll_seconds(), slow.first_poll_seconds()) == (2, 1000)
    assert [quick.next_poll_seconds(polls) for polls in (1, 2, 50)] == [3, 4.5, 10]
    assert [slow.next_poll_seconds(polls) for polls in (1, 2, 50)] == [300, 300, 300]


# --- orders -----------------------------------------------------------------------------------------------------


@each_provider
def test_orders_are_taken_where_a_token_is_set_for_them(provider):
    """What can be submitted must be findable: by its webhook, by a poll, or because it is answered at once."""
    assert provider.can_submit is (provider.submit_setting is not None)
    assert not provider.can_submit or provider.can_poll
    assert not provider.can_list or provider.can_poll
    assert provider.max_in_flight > 0
    assert provider.name not in IN_FLIGHT or provider.can_submit
    load(in_flight=f"{provider.name}=2") if provider.can_submit else None


@pytest.mark.parametrize("name", list(LOADED))
def test_without_a_token_nothing_is_submitted_and_the_setting_is_named(name):
    """The message must state the setting that an operator has to write."""
    provider = load(without=["tokens"])[name]
    order = SubmitRequest(UUID(int=1), "owner/name", {}, "https://us.example/webhooks/them?key=k")

    assert (provider.can_submit, provider.can_list, provider.can_cancel) == (False, False, False)
    with pytest.raises(ProviderRefused, match=provider.submit_setting or "accepts no submissions"):
        provider.submit(order)
    with pytest.raises(ProviderRefused, match=f"{provider.submit_setting}|cannot cancel"):
        provider.cancel("x1", "owner/name")


# --- verify -----------------------------------------------------------------------------------------------------


@each_signing
@pytest.mark.parametrize("key", [OLD, NEW])
@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\x00", b"x" * 2**20])
def test_each_live_secret_signs_any_body(provider, key, body):
    """During a rotation both are right; a body is bytes until it is parsed."""
    verified = provider.verify(SIGNERS[provider.name](body, key=key), body, NOW)

    assert isinstance(verified, VerifiedDelivery)
    assert verified.webhook_id is None or is_storable(verified.webhook_id)


@each_signing
def test_header_names_are_read_in_any_case(provider):
    """HTTP/2 writes them small, HTTP/1 as it likes."""
    signed = [(name.title(), value) for name, value in SIGNERS[provider.name](b"{}")]

    assert provider.verify([(b"HOST", b"x"), *signed], b"{}", NOW) == provider.verify(signed, b"{}", NOW)


@each_signing
def test_what_is_not_rightly_signed_is_refused(provider):
    """Another secret, another body, a stale time stamp, no header at all."""
    sign = SIGNERS[provider.name]

    wrong = [sign(b"{}", key=b"somebody else's secret, 33 bytes."), []]
    wrong += [] if provider.name == "bearer" else [sign(b"{} ")]
    wrong += [] if provider.name in TIMELESS else [sign(b"{}", at=NOW - 301)]
    for headers in wrong:
        with pytest.raises(BadSignature):
            provider.verify(headers, b"{}", NOW)


@each_signing
def test_each_signature_header_must_be_there_and_once(provider):
    """Of two, a proxy in front may have judged the other."""
    signed = SIGNERS[provider.name](b"{}")

    for place, (name, _) in enumerate(signed):
        with pytest.raises(BadSignature):
            provider.verify(signed[:place] + signed[place + 1 :], b"{}", NOW)
        with pytest.raises(BadSignature):
            provider.verify([*signed, (name.upper(), b"1")], b"{}", NOW)


@each_signing
@unhurried
@given(data=st.data())
def test_verify_raises_nothing_but_its_own_refusal(provider, data):
    """It stands at the open door: an exception there is a 500, and the provider stops sending."""
    signed = SIGNERS[provider.name](b"", key=b"somebody else's secret, 33 bytes.")
    names = [name for name, _ in signed]
    value = st.binary(max_size=30) | st.sampled_from([value for _, value in signed]) | st.just(b"v1,\xff")
    headers = data.draw(st.lists(st.tuples(st.sampled_from(names) | st.binary(max_size=9), value), max_size=5))
    body = data.draw(st.binary(min_size=1, max_size=30))

    with pytest.raises(BadSignature):
        provider.verify(headers, body, NOW)


@pytest.mark.parametrize("name", list(SIGNERS))
def test_unsigned_webhooks_are_accepted_only_from_named_providers(name):
    """And a secret that is set is always used: a forgotten exception must not open the door."""
    shut, asked = load(without=["secrets"])[name], load(without=["secrets"], allow_unsigned=name)[name]
    both = load(allow_unsigned=name)[name]
    has_keys = name in WITH_PUBLIC_KEYS

    assert (shut.is_enabled, asked.is_enabled, both.is_enabled) == (has_keys, True, True)
    if not has_keys:
        assert asked.verify([], b"{}", NOW) == VerifiedDelivery(None)
    for provider in (shut, both):
        with pytest.raises(BadSignature):
            provider.verify([], b"{}", NOW)


def test_gemini_signs_with_its_secret_or_with_its_keys():
    """Static webhooks have the first, those of a request the second; a right first rescues no wrong second."""
    gemini, v1 = LOADED["gemini"], sign_standard(b"{}")
    v1a, wrong = sign_v1a(b"{}"), sign_v1a(b"{ }")

    assert gemini.verify(v1, b"{}", NOW) == gemini.verify(v1a, b"{}", NOW) == VerifiedDelivery("msg_1")
    with pytest.raises(BadSignature):
        gemini.verify([*v1[:2], (v1[2][0], v1[2][1] + b" " + wrong[2][1])], b"{}", NOW)


@pytest.mark.parametrize("name", sorted(UNSIGNED))
def test_what_is_not_signed_is_accepted_as_a_hint(name):
    """Whatever its headers; only a poll is believed."""
    assert LOADED[name].verify(sign_standard(b"{}"), b"{}", NOW) == VerifiedDelivery(None)
    assert LOADED[name].can_poll


def test_an_unsigned_provider_that_does_not_exist_refuses_the_start():
    """A misspelt name would leave a provider shut without a word."""
    with pytest.raises(ConfigError, match=r"MOORAGE_ALLOW_UNSIGNED: 'replicat' is not a .*: did you mean replicate"):
        providers.load(Settings(_env_file=None, **SETTINGS, allow_unsigned="replicat"))


@pytest.mark.parametrize(
    ("value", "says"),
    [("replicat:x=3", "did you mean replicate?"), ("standard=3", "fal or openai or replicate"), ("=3", "write fal or")],
)
def test_a_limit_for_what_takes_no_submissions_refuses_the_start(value, says):
    """A limit that is ignored costs money at the provider."""
    with pytest.raises(ConfigError, match=f"MOORAGE_IN_FLIGHT: .* is not a provider .*{re.escape(says)}"):
        providers.load(Settings(_env_file=None, **SETTINGS, in_flight=value))


# --- what is recorded -------------------------------------------------------------------------------------------


@each_provider
def test_kept_headers_hold_no_signature_and_no_key(provider):
    """A reader of the table must not be able to sign webhooks."""
    hostile = [
        (b"User-Agent", b"a\xff\x00b"),
        (b"\xff\x00", b"x"),
        (b"Authorization", b"Bearer k"),
        (b"Cookie", b"c=1"),
    ]
    signed = SIGNERS.get(provider.name, sign_standard)(b"{}")

    kept = provider.select_headers([*signed, *hostile])

    assert "user-agent" in kept
    assert not {"authorization", "cookie"} & set(kept)
    assert not any("signature" in name for name in kept)
    assert signed[-1][1].decode() not in kept.values()
    assert TOKEN not in str(kept)
    assert all(is_storable(name) and is_storable(value) and len(value) <= 500 for name, value in kept.items())


# --- where files may come from ----------------------------------------------------------------------------------

ELSEWHERE = [
    "https://evil.example/a", "http://replicate.delivery/a", "http://files.example/a", "http://127.0.0.1:8081/a",
    "https://replicate.delivery@evil.example/a", "https://evil.example/replicate.delivery", "https://169.254.169.254/a",
    "http://127.0.0.1\\@replicate.delivery/a", "file:///etc/passwd", "https://replicate.delivery.evil.example/a", "",
]  # fmt: skip


@each_provider
def test_a_file_may_come_from_the_allowed_hosts_alone(provider):
    """The socket guard refuses private addresses; this refuses hosts that were not allowed."""
    assert provider.refusal_reason(allowed(provider)) is None
    for url in ELSEWHERE:
        assert provider.refusal_reason(url), url


@each_provider
def test_no_credential_travels_to_another_host(provider):
    """A redirect to a stranger must not carry the token along."""
    for url in ELSEWHERE:
        assert provider.download_headers(url) == {}, url
    assert set(provider.download_headers(allowed(provider))) <= {"Authorization"}
