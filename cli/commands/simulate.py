"""`moorage simulate`: a correctly signed webhook, as a curl line that works when pasted, or sent."""

import base64
import hmac
import json
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import requests

from moorage import settings as settings_module
from moorage.errors import ConfigError
from moorage.settings import Settings

SEND_SECONDS: Final = 10
# A success needs a file: one red pixel, so that it can be kept without any host.
PIXEL: Final = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def _replicate(prediction_id: str, status: str, outputs: Sequence[str]) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    is_over = status not in ("starting", "processing")
    return {
        "id": prediction_id,
        "model": "moorage/simulated",
        "version": "simulated",
        "input": {},
        "logs": "",
        "output": list(outputs) or None,
        "error": "simulated" if status == "failed" else None,
        "status": status,
        "created_at": at,
        "completed_at": at if is_over else None,
    }


def _standard(prediction_id: str, status: str, outputs: Sequence[str]) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    data = {"id": prediction_id, "status": status, "output": list(outputs)}
    return {"type": f"prediction.{status}", "timestamp": at, "data": data}


_BODIES: Final[dict[str, Callable[[str, str, Sequence[str]], dict[str, Any]]]] = {
    "replicate": _replicate,
    "standard": _standard,
}


@click.command()
@click.argument("provider", type=click.Choice(sorted(_BODIES)))
@click.option("--id", "prediction_id", help="The provider's id of the prediction; made up when not given.")
@click.option("--status", default="succeeded", show_default=True, help="The provider's own word.")
@click.option("--output", "outputs", multiple=True, metavar="URL", help="A file; a red pixel when none is given.")
@click.option("--url", "base", metavar="BASE", help="Where the receiver is; PUBLIC_URL when not given.")
@click.option("--send", is_flag=True, help="Send it and print the answer.")
def simulate(
    provider: str, prediction_id: str | None, status: str, outputs: tuple[str, ...], base: str | None, send: bool
) -> None:
    """Make a correctly signed webhook of PROVIDER and print it as a curl line, or send it."""
    settings = settings_module.get_settings()
    files = outputs or ((PIXEL,) if status == "succeeded" else ())
    text = json.dumps(_BODIES[provider](prediction_id or f"simulated-{uuid.uuid4().hex[:12]}", status, files))
    headers = _signed(_secret(settings, provider), text.encode(), f"msg_{uuid.uuid4().hex}", int(time.time()))
    url = f"{(base or settings.public_url).rstrip('/')}/webhooks/{provider}"
    if send:
        _send(url, headers, text)
    else:
        click.echo(_curl(url, headers, text))
        click.echo("# the signature is good for 5 minutes", err=True)


def _secret(settings: Settings, provider: str) -> bytes:
    """Return the first live secret as bytes."""
    name = f"{provider.upper()}_WEBHOOK_SECRET"
    given = settings.replicate_webhook_secret if provider == "replicate" else settings.standard_webhook_secret
    if not given:
        raise ConfigError(f"{name} is not set: write {name}=whsec_... as the provider shows it")
    encoded = given[0].get_secret_value().removeprefix("whsec_")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise ConfigError(f"{name} is not base64: write whsec_... as the provider shows it") from None


def _signed(secret: bytes, body: bytes, webhook_id: str, at: int) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0: HMAC-SHA256 over `id.timestamp.body`."""
    digest = hmac.digest(secret, f"{webhook_id}.{at}.".encode() + body, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _curl(url: str, headers: dict[str, str], text: str) -> str:
    parts = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    return shlex.join(["curl", "-i", "-X", "POST", url, *parts, "--data-raw", text])


def _send(url: str, headers: dict[str, str], text: str) -> None:
    try:
        answer = requests.post(url, data=text.encode(), headers=headers, timeout=SEND_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise click.ClickException(f"{url} did not answer: {type(error).__name__}") from error
    click.echo(f"{answer.status_code} {answer.reason}: {answer.text[:500]}".rstrip(": "))
    if answer.status_code >= 400:
        raise SystemExit(1)
