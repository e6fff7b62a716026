"""What fal's webhooks say, and how they are signed: Ed25519, with the public keys in a JSON Web Key Set."""

import base64
import hashlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import keys, pictures
from simulation.provider.outputs import Output
from simulation.provider.prediction import Dialect, Prediction, Url
from simulation.provider.webhooks import Message, Signer

ERRORS: Final = {"failed": "Invalid status code: 422", "canceled": "Request was cancelled", "aborted": "Timed out"}


class FalDialect(Dialect):
    """Sends one webhook, at the end, with the result in an envelope."""

    provider = "fal"
    paths: ClassVar[Mapping[str, str]] = {"string": "payload.image.url", "video": "payload.video.url"}
    path = "payload.images[{}].url"

    def new_id(self) -> str:
        """Return a UUID."""
        return str(uuid.uuid4())

    def told(self, prediction: Prediction, url: Url) -> dict[str, Any]:
        """Return the body of the webhook."""
        status, said = result(prediction, url)
        return {
            "error": ERRORS.get(status),
            "gateway_request_id": prediction.id,
            "payload": said,
            "request_id": prediction.id,
            "status": "OK" if status == "succeeded" else "ERROR",
        }


def result(prediction: Prediction, url: Url) -> tuple[str, dict[str, Any]]:
    """Return the state of a request and what its result says."""
    is_good = prediction.status == "succeeded"
    return prediction.status, payload(prediction, url) if is_good else detail(prediction)


def payload(prediction: Prediction, url: Url) -> dict[str, Any]:
    """Return the result of a request that ended well."""
    if prediction.plan.shape == "text":
        return {"output": "A harbour at dawn."}
    named = [_file(output, url(output)) for output in prediction.shown]
    is_single = prediction.plan.shape in ("string", "video")
    name = {"string": "image", "video": "video"}.get(prediction.plan.shape, "images")
    files = {} if is_single and not named else {name: named[0] if is_single else named}
    return {**files, "seed": 196619188014358660, "has_nsfw_concepts": [False] * len(named), "timings": {}}


def _file(output: Output, url: str) -> dict[str, Any]:
    name = f"{output.index}.{pictures.ending(output.kind)}"
    return {
        "url": url,
        "content_type": pictures.content_type(output.kind),
        "file_name": name,
        "file_size": output.bytes,
        "width": output.size[0] if output.size else None,
        "height": output.size[1] if output.size else None,
    }


def detail(prediction: Prediction) -> dict[str, Any]:
    """Return the result of a request that failed."""
    told = prediction.error or "CUDA out of memory"
    return {"detail": [{"loc": ["body"], "msg": told, "type": "runtime_error"}]}


def signer(signing: Ed25519PrivateKey) -> Signer:
    """Return what signs as fal does: Ed25519 over request id, user id, time and the digest of the body."""
    wrong = Ed25519PrivateKey.generate()

    def headers(message: Message, rightly: bool) -> dict[str, str]:
        timestamp = str(int(time.time()))
        parts = [message.prediction, keys.FAL_USER, timestamp, hashlib.sha256(message.body).hexdigest()]
        signature = (signing if rightly else wrong).sign("\n".join(parts).encode())
        return {
            "User-Agent": "Fal-Standin/1",
            "X-Fal-Webhook-Request-Id": message.prediction,
            "X-Fal-Webhook-User-Id": keys.FAL_USER,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": signature.hex(),
        }

    return headers


def signing_key(secret: str) -> Ed25519PrivateKey:
    """Return the key that belongs to the stand-in's secret: the same one after a restart."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"fal {secret}".encode()).digest())


def key_set(signing: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the public keys: one that is out of use, then the one that webhooks are signed with."""
    return {"keys": [_jwk(Ed25519PrivateKey.from_private_bytes(bytes(32))), _jwk(signing)]}


def _jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": public}
