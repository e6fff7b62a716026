"""`moorage providers`: what each provider is configured for, and what a payload of one would do."""

from typing import Any, BinaryIO

import click

import providers as provider_package
from cli import console
from moorage import settings as settings_module
from moorage.errors import ConfigError, UnrelatedEvent
from providers.base import Provider


@click.group()
def providers() -> None:
    """List the providers, or show what a payload of one would do. No server is needed."""


@providers.command("list")
@console.json_option
def list_providers() -> console.Output:
    """List built-in and declared providers with what is configured."""
    loaded = provider_package.load(settings_module.get_settings())
    rows = [_describe(provider) for _, provider in sorted(loaded.items())]
    return {"providers": rows}, console.build_tables("", rows, *rows[0])


def _describe(provider: Provider) -> dict[str, Any]:
    webhooks = "verified" if provider.has_secret else "unsigned" if provider.is_enabled else "refused"
    can = {"poll": provider.can_poll, "submit": provider.can_submit, "cancel": provider.can_cancel}
    able = ", ".join(name for name, is_possible in can.items() if is_possible)
    return {"name": provider.name, "webhooks": webhooks, "can": able, "verified by": provider.webhook_setting}


@providers.command("test")
@click.argument("name")
@click.option("--body", type=click.File("rb"), required=True, help="File with the raw body of a webhook; - for stdin.")
def test_payload(name: str, body: BinaryIO) -> None:
    """Show what a webhook of NAME with this body would do; nothing is recorded and no signature verified."""
    loaded = provider_package.load(settings_module.get_settings())
    if name not in loaded:
        raise ConfigError(f"{name!r} is not a provider: write {' or '.join(sorted(loaded))}")
    try:
        report = loaded[name].parse_report(body.read())
    except UnrelatedEvent as error:
        click.echo(f"ignored: {error}")
        return
    status, following = f"{report.status} ({report.raw_status})", "poll" if report.needs_fetch else None
    facts = {"id": report.external_id, "status": status, "error": report.error, "expires_at": report.expires_at}
    click.echo("\n".join(f"{key}: {x}" for key, x in {**facts, "next": following}.items() if x is not None))
    for file in (*report.outputs, *report.mentions):
        effect = "not downloaded" if file.problem else "downloaded"
        click.echo(f"{file.path}: {effect} {file.url or 'inline'} {file.problem or ''}".rstrip())
