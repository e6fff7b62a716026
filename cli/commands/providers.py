"""`moorage providers`: what each provider is configured for, and what a payload of one would do."""

import time
from typing import Any, BinaryIO

import click

import providers as provider_package
from cli import console
from moorage import settings as settings_module
from moorage.errors import BadSignature, ConfigError, KeysStale, UnrelatedEvent
from providers.base import Provider
from providers.declared import DeclaredProvider


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
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="Of the webhook: verify its signature."
)
@click.option("--at", type=int, metavar="SECONDS", help="When it was received, in Unix seconds; default: now.")
@click.option("--poll", "is_polled", is_flag=True, help="The body is the answer to a poll.")
def test_payload(name: str, body: BinaryIO, headers: tuple[str, ...], at: int | None, is_polled: bool) -> None:
    """Show what a webhook of NAME with this body would do; nothing is recorded."""
    loaded = provider_package.load(settings_module.get_settings())
    if name not in loaded:
        raise ConfigError(f"{name!r} is not a provider: write {' or '.join(sorted(loaded))}")
    provider, raw = loaded[name], body.read()
    if headers:
        _verify(provider, headers, raw, time.time() if at is None else at)
    parse = provider.parse_report
    if is_polled:
        if not isinstance(provider, DeclaredProvider):
            raise ConfigError(f"{name} is not declared by fields: remove --poll")
        parse = provider.parse_poll
    try:
        report = parse(raw)
    except UnrelatedEvent as error:
        console.print_parts(f"ignored: {error}")
        return
    status, following = f"{report.status} ({report.raw_status})", "poll" if report.needs_fetch else None
    if report.status == "unknown" and not report.needs_fetch:
        following = "none, the prediction stays open: a hint that it runs, or a word that is in no list of statuses"
    elif report.status == "succeeded" and not (report.outputs or report.mentions or report.needs_fetch):
        following = "poll, then end without files: no file was found where outputs are read"
    facts = {"id": report.external_id or None, "status": status, "error": report.error, "expires_at": report.expires_at}
    console.print_parts(*(f"{key}: {x}" for key, x in {**facts, "next": following}.items() if x is not None))
    for file in (*report.outputs, *report.mentions):
        effect = "not downloaded" if file.problem else "downloaded"
        console.print_parts(f"{file.path}: {effect} {file.url or 'inline'} {file.problem or ''}".rstrip())


def _verify(provider: Provider, headers: tuple[str, ...], body: bytes, now: float) -> None:
    pairs = [
        (name.strip().encode(), value.strip().encode()) for name, _, value in (one.partition(":") for one in headers)
    ]
    try:
        provider.fetch_keys()  # public ones, if there are any
        provider.verify(pairs, body, now)
    except (BadSignature, KeysStale) as error:
        raise click.ClickException(f"the webhook would be refused: {error}") from error
    click.echo("signature: verified" if provider.has_secret else "signature: none is required")
