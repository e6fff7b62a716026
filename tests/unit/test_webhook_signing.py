"""The Standard Webhooks verifier, held against the reference library and its own published vector."""

import base64
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook

from moorage.errors import BadSignature, ConfigError
from providers.signature_verifiers import StandardVerifier
from providers.webhook_signing import decode_standard_secrets

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the computer is shared
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another secret of 28 bytes..").decode()
SETTING = "STANDARD_WEBHOOK_SECRET"
NOW = 1_614_265_330
BODY = b'{"test": 2432232314}'
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
FULL_WIDTH = "".join(chr(0xFEE0 + ord(digit)) for digit in "1614265330")
VECTOR = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="  # published with the reference libraries


def verify_standard_v1(given: Any, body: bytes, now: float, *, secrets: Any, prefixes: Any = ("webhook-",)) -> str:
    names = [[f"{prefix}{part}" for part in ("id", "timestamp", "signature")] for prefix in prefixes]
    verifier = StandardVerifier(secrets, names=names)
    return str(verifier.verify_body(verifier.check_headers(given, now), body).webhook_id)


def secrets(*given: str) -> tuple[bytes, ...]:
    return decode_standard_secrets([SecretStr(one) for one in given], SETTING)


def headers(signature: str | bytes, *, webhook_id: str = ID, timestamp: str | bytes = str(NOW), prefix="webhook-"):
    values = {"id": webhook_id, "timestamp": timestamp, "signature": signature}
    return [((prefix + k).encode(), v if isinstance(v, bytes) else v.encode()) for k, v in values.items()]


def signed(body: bytes, *, secret: str = SECRET, webhook_id: str = ID, timestamp: str = str(NOW)) -> str:
    """Sign in lines of its own: the reference library takes neither bytes nor odd time stamps."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")).decode()


def test_the_published_vector_is_right():
    """The one vector that every implementation shares."""
    assert verify_standard_v1(headers(VECTOR), BODY, NOW, secrets=secrets(SECRET)) == ID


@unhurried
@given(
    st.text(alphabet=st.characters(codec="utf-8")), st.binary(min_size=24, max_size=64), st.integers(1, 4_000_000_000)
)
def test_what_the_reference_library_signs_is_right(body, key, at):
    """The library is the oracle: senders use it."""
    secret = "whsec_" + base64.b64encode(key).decode()
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(at, UTC), body)
    given_headers = headers(signature, webhook_id="msg_1", timestamp=str(at))

    assert verify_standard_v1(given_headers, body.encode(), at, secrets=secrets(secret)) == "msg_1"


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", '{"synthetic": "café"}'.encode(), b"x" * (9 * 2**20)])
def test_any_bytes_can_be_signed(body):
    """A body is bytes until it is parsed: the reference library fails on those that are not UTF-8."""
    assert verify_standard_v1(headers(signed(body)), body, NOW, secrets=secrets(SECRET)) == ID


def test_a_reserialized_body_does_not_match():
    """The signature is over the bytes that were sent, not over what they mean."""
    with pytest.raises(BadSignature, match="no signature matches"):
        verify_standard_v1(headers(VECTOR), BODY.replace(b": ", b":"), NOW, secrets=secrets(SECRET))


@pytest.mark.parametrize(
    "signature",
    [
        f"v1,{'A' * 43}= v2,{'A' * 43}= {VECTOR} v1,{'A' * 43}=",
        f"v1a,anything {VECTOR}",
        f"v1,not base64 {VECTOR}",
        f"v1 v1, v1,a,b {VECTOR}",
        f"v1,é {VECTOR}",
        f"\t{VECTOR}\t",
    ],
)
def test_a_right_signature_among_others_is_enough(signature):
    """A sender signs with every live secret while it rotates them."""
    assert verify_standard_v1(headers(signature), BODY, NOW, secrets=secrets(OTHER, SECRET)) == ID


@pytest.mark.parametrize(
    "signature",
    ["", " ", "v1", "v1,", "v1,not base64", "v1,a,b", "v1,é", b"v1,\xff\x00\xfe", VECTOR[3:],
     VECTOR.replace("v1,", "v2,"), VECTOR.replace("v1,", "v1."), VECTOR.replace("v1,", "V1,"),
     VECTOR[:-1], VECTOR + "=", VECTOR + ",x", VECTOR.replace("v1,", "v1a,"), ",", ",,,"],
)  # fmt: skip
def test_a_wrong_signature_is_a_clean_verdict(signature):
    """Reference libraries raise ValueError, binascii.Error or TypeError on several of these: a 500."""
    with pytest.raises(BadSignature) as raised:
        verify_standard_v1(headers(signature), BODY, NOW, secrets=secrets(SECRET))

    assert raised.value.status == 401


@pytest.mark.parametrize("age", [-300, -1, 0, 1, 300])
def test_a_time_stamp_within_five_minutes_is_fresh(age):
    """Both ends included, whatever the fraction of our own second."""
    timestamp = str(NOW - age)
    given_headers = headers(signed(BODY, timestamp=timestamp), timestamp=timestamp)

    assert verify_standard_v1(given_headers, BODY, NOW + 0.999, secrets=secrets(SECRET)) == ID


@pytest.mark.parametrize("age", [-(10**9), -301, 301, 10**9])
def test_a_time_stamp_further_off_is_stale(age):
    """Else a recorded webhook could be sent again for ever."""
    timestamp = str(NOW - age)

    with pytest.raises(BadSignature, match="more than 300 s"):
        verify_standard_v1(
            headers(signed(BODY, timestamp=timestamp), timestamp=timestamp), BODY, NOW, secrets=secrets(SECRET)
        )


@pytest.mark.parametrize(
    "timestamp",
    ["", "hello", "1614265330.5", "-1614265330", "+1614265330", "01614265330", " 1614265330", "1614265330 ",
     "1_614_265_330", "1614265330\n", "9" * 30, FULL_WIDTH, "1614265330e0", "0x60379c32", "NaN", "0"],
)  # fmt: skip
def test_a_time_stamp_that_is_no_whole_number_is_refused(timestamp):
    """A time stamp with two spellings has two signatures: even rightly signed ones of these are refused."""
    given_headers = headers(signed(BODY, timestamp=timestamp), timestamp=timestamp)

    with pytest.raises(BadSignature, match="whole number"):
        verify_standard_v1(given_headers, BODY, NOW, secrets=secrets(SECRET))


@pytest.mark.parametrize("webhook_id", ["", "a.b", "a b", "é", "a\x00", "a" * 2001])
def test_an_id_that_could_be_cut_elsewhere_is_refused(webhook_id):
    """With a full stop in it, id and time stamp could trade characters under the same signature."""
    given_headers = headers(signed(BODY, webhook_id=webhook_id), webhook_id=webhook_id)

    with pytest.raises(BadSignature, match="webhook-id"):
        verify_standard_v1(given_headers, BODY, NOW, secrets=secrets(SECRET))


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_each_of_the_three_headers_must_be_there(missing):
    """The refusal names the header."""
    given_headers = headers(VECTOR)
    name, _ = given_headers.pop(missing)

    with pytest.raises(BadSignature, match=f"{name.decode()} is missing"):
        verify_standard_v1(given_headers, BODY, NOW, secrets=secrets(SECRET))


@pytest.mark.parametrize("doubled", [0, 1, 2])
@pytest.mark.parametrize("first", [True, False])
def test_a_repeated_header_is_refused(doubled, first):
    """A proxy in front may take the one while we take the other."""
    given_headers = headers(VECTOR)
    extra = (given_headers[doubled][0].upper(), b"another")
    given_headers.insert(0 if first else 3, extra)

    with pytest.raises(BadSignature, match="occurs 2 times"):
        verify_standard_v1(given_headers, BODY, NOW, secrets=secrets(SECRET))


def test_the_first_prefix_in_use_counts_alone():
    """A right Svix signature must not rescue a wrong one under the standard's own name."""
    both, svix = ("webhook-", "svix-"), headers(VECTOR, prefix="Svix-")
    wrong = headers("v1,AAAA")

    assert verify_standard_v1(svix, BODY, NOW, secrets=secrets(SECRET), prefixes=both) == ID
    with pytest.raises(BadSignature):
        verify_standard_v1(wrong + svix, BODY, NOW, secrets=secrets(SECRET), prefixes=both)
    with pytest.raises(BadSignature, match="webhook-id is missing"):
        verify_standard_v1(svix, BODY, NOW, secrets=secrets(SECRET))


@pytest.mark.parametrize(
    "text",
    ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", SECRET, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
     "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBg=="],
)  # fmt: skip
def test_a_secret_is_read_with_and_without_prefix_and_padding(text):
    """People copy secrets in all these forms."""
    (key,) = secrets(text)
    bare = text.removeprefix("whsec_").rstrip("=")

    assert base64.b64encode(key).decode().rstrip("=")[:-1] == bare[:-1]
    assert len(key) == len(bare) * 3 // 4


@pytest.mark.parametrize(
    "text",
    ["", "whsec_", "whsec_a", "whsec_c2hvcnQ=", "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
     "whsec_whsec_MfKQ9r8GKYqrTwjUPD8I", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La LaSw",
     "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaéaSw",
     "$REPLICATE_WEBHOOK_SECRET_HERE"],
)  # fmt: skip
def test_a_secret_that_is_none_refuses_the_start_and_is_not_shown(text):
    """On the first request it would be too late; in a log it would be lost."""
    with pytest.raises(ConfigError, match=f"{SETTING}: secret 2") as raised:
        secrets(SECRET, text)

    assert raised.value.__cause__ is None
    assert not text or text == "whsec_" or text not in str(raised.value)


@unhurried
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"webhook-id", b"Webhook-Timestamp", b"WEBHOOK-SIGNATURE"]) | st.binary(max_size=20),
            st.binary(max_size=40)
            | st.sampled_from([str(NOW).encode(), ID.encode(), b"v1," + b"A" * 43 + b"=", b"v1,\xff", b"v1"]),
        ),
        max_size=6,
    ),
    st.binary(max_size=40),
)
def test_no_bytes_do_more_than_fail(given_headers, body):
    """The verifier stands at the open door: all it may raise is its own refusal."""
    with pytest.raises(BadSignature):
        verify_standard_v1(given_headers, body, NOW, secrets=secrets(SECRET))
