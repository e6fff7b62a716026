"""`moorage simulate`: print a correctly signed webhook as a curl command, or send it."""

import json
import shlex
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
import requests

from cli import console
from moorage import settings as settings_module
from moorage.errors import ConfigError
from moorage.settings import Settings
from providers import webhook_signing

SEND_SECONDS: Final = 10
# The output of a success without --output: one red pixel, stored without a download.
PIXEL: Final = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def _build_body(provider: str, prediction_id: str, status: str, outputs: Sequence[str]) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if provider == "standard":
        data = {"id": prediction_id, "status": status, "output": list(outputs)}
        return {"type": f"prediction.{status}", "timestamp": now, "data": data}
    return {
        "id": prediction_id,
        "model": "moorage/simulated",
        "version": "simulated",
        "input": {},
        "logs": "",
        "output": list(outputs) or None,
        "error": "simulated" if status == "failed" else None,
        "status": status,
        "created_at": now,
        "completed_at": None if status in ("starting", "processing") else now,
    }


@click.command()
@click.argument("provider", type=click.Choice(("replicate", "standard")))
@click.option("--id", "prediction_id", help="The provider's prediction id; default: random.")
@click.option("--status", default="succeeded", show_default=True, help="Status in the provider's format.")
@click.option("--output", "outputs", multiple=True, metavar="URL", help="URL of an output; default: a red pixel.")
@click.option("--url", "base", metavar="BASE", help="URL of the receiver; default: PUBLIC_URL.")
@click.option("--send", is_flag=True, help="Send it and print the response.")
def simulate(
    provider: str, prediction_id: str | None, status: str, outputs: tuple[str, ...], base: str | None, send: bool
) -> None:
    """Print a correctly signed webhook of PROVIDER as a curl command, or send it."""
    settings = settings_module.get_settings()
    files = outputs or ((PIXEL,) if status == "succeeded" else ())
    text = json.dumps(_build_body(provider, prediction_id or f"simulated-{uuid.uuid4().hex[:12]}", status, files))
    headers = _build_headers(settings, provider, text.encode())
    url = f"{(base or settings.public_url).rstrip('/')}/webhooks/{provider}"
    if send:
        _send(url, headers, text)
    else:
        fields = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        click.echo(shlex.join(["curl", "-i", "-X", "POST", url, *fields, "--data-raw", text]))
        click.echo("# the signature is valid for 5 minutes", err=True)


def _build_headers(settings: Settings, provider: str, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0, signed with the first secret of the provider."""
    name = f"{provider.upper()}_WEBHOOK_SECRET"
    given = settings.replicate_webhook_secret if provider == "replicate" else settings.standard_webhook_secret
    if not given:
        raise ConfigError(f"{name} is not set: write {name}=whsec_... as the provider shows it")
    secrets = webhook_signing.decode_standard_secrets(given[:1], name)
    webhook_id, timestamp = f"msg_{uuid.uuid4().hex}", int(time.time())
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": webhook_signing.sign_standard_v1(webhook_id, timestamp, body, secrets=secrets),
    }


def _send(url: str, headers: dict[str, str], text: str) -> None:
    try:
        response = requests.post(url, data=text.encode(), headers=headers, timeout=SEND_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise click.ClickException(f"{url} did not answer: {type(error).__name__}") from error
    console.print_parts(f"{response.status_code} {response.reason}: {response.text[:500]}".rstrip(": "))
    if response.status_code >= 300:  # no redirect is followed
        raise SystemExit(1)
