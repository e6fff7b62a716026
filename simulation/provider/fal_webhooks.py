"""Bodies and signatures of fal's webhooks: Ed25519, with the public keys in a JSON Web Key Set."""

import base64
import hashlib
import time
import uuid
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from simulation.provider import pictures
from simulation.provider.keys import FAL_USER
from simulation.provider.outputs import Output
from simulation.provider.prediction import Dialect, Prediction, UrlBuilder
from simulation.provider.webhooks import Message, Signer

ERRORS: Final = {"failed": "Invalid status code: 422", "canceled": "Request was cancelled", "aborted": "Timed out"}


def _build_webhook(prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    """Return the result in an envelope."""
    status, payload = build_result(prediction, url)
    return {
        "error": ERRORS.get(status),
        "gateway_request_id": prediction.id,
        "payload": payload,
        "request_id": prediction.id,
        "status": "OK" if status == "succeeded" else "ERROR",
    }


# Sends one webhook, at the end.
DIALECT: Final = Dialect(
    "fal",
    new_id=lambda: str(uuid.uuid4()),
    build_body=_build_webhook,
    path="payload.images[{}].url",
    paths={"string": "payload.image.url", "video": "payload.video.url"},
)


def build_result(prediction: Prediction, url: UrlBuilder) -> tuple[str, dict[str, Any]]:
    """Return the status of a request and the body of its result."""
    if prediction.status == "succeeded":
        return prediction.status, _build_payload(prediction, url)
    message = prediction.error or "CUDA out of memory"
    return prediction.status, {"detail": [{"loc": ["body"], "msg": message, "type": "runtime_error"}]}


def _build_payload(prediction: Prediction, url: UrlBuilder) -> dict[str, Any]:
    shape = prediction.script.shape
    if shape == "text":
        return {"output": "A harbour at dawn."}
    files = [_build_file(output, url(output)) for output in prediction.visible_outputs]
    is_single = shape in ("string", "video")
    name = {"string": "image", "video": "video"}.get(shape, "images")
    named = {} if is_single and not files else {name: files[0] if is_single else files}
    return {**named, "seed": 196619188014358660, "has_nsfw_concepts": [False] * len(files), "timings": {}}


def _build_file(output: Output, url: str) -> dict[str, Any]:
    return {
        "url": url,
        "content_type": pictures.content_type(output.format),
        "file_name": f"{output.index}.{pictures.extension(output.format)}",
        "file_size": output.bytes,
        "width": output.size_px[0] if output.size_px else None,
        "height": output.size_px[1] if output.size_px else None,
    }


def fal_signer(signing_key: Ed25519PrivateKey) -> Signer:
    """Return a signer in fal's scheme: Ed25519 over request id, user id, time and the digest of the body."""
    wrong_key = Ed25519PrivateKey.generate()

    def build_headers(message: Message, is_valid: bool) -> dict[str, str]:
        timestamp = str(int(time.time()))
        parts = [message.prediction_id, FAL_USER, timestamp, hashlib.sha256(message.body).hexdigest()]
        signature = (signing_key if is_valid else wrong_key).sign("\n".join(parts).encode())
        return {
            "User-Agent": "Fal-Standin/1",
            "X-Fal-Webhook-Request-Id": message.prediction_id,
            "X-Fal-Webhook-User-Id": FAL_USER,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": signature.hex(),
        }

    return build_headers


def derive_signing_key(secret: str) -> Ed25519PrivateKey:
    """Return the key of a stand-in's secret: the same one after a restart."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"fal {secret}".encode()).digest())


def build_key_set(signing_key: Ed25519PrivateKey) -> dict[str, Any]:
    """Return the public keys: a retired one, then the current one."""
    return {"keys": [_build_jwk(Ed25519PrivateKey.from_private_bytes(bytes(32))), _build_jwk(signing_key)]}


def _build_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    public = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": public}
