"""`moorage recover`: register and poll predictions from a provider's list."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

import click

from cli import console
from db import pauses
from db.connection import current_time
from moorage.errors import ConfigError
from tasks.predictions.recover import ListedMatch, Match, RecoveryOverview, register_pages, scan
from tasks.step import Deps
from worker import boot, publish

PROGRESS_EVERY: Final = 1000
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
MATCH_TEXTS: Final[dict[Match, str]] = {
    "unknown": "not registered: to be registered and polled",
    "live": "registered, not ended: to be polled now",
    "ended": "registered and ended: nothing to do",
    "lost": "registered and lost: see moorage dead list, then replay",
    "foreign": "not registered, with a webhook outside PUBLIC_URL: ignored (--all includes them)",
}


class Duration(click.ParamType[timedelta]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration: use for example 90s, 30m, 2h or 1d", param, ctx)
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


@click.command()
@click.argument("provider")
@click.option("--since", type=Duration(), default="2h", show_default=True, help="Age limit: 90s, 30m, 2h, 1d.")
@click.option("--owner", default="recovered", show_default=True, help="Owner of the registered jobs.")
@click.option("--all", "include_foreign", is_flag=True, help="Include predictions whose webhook is outside PUBLIC_URL.")
@click.option("--dry-run", is_flag=True, help="Show the actions without performing them.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@console.json_flag
def recover(
    provider: str, since: timedelta, owner: str, include_foreign: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """
    Register the predictions in PROVIDER's list that are not registered, and poll them and those still awaited.

    For outages longer than the provider's webhook retries. Repeating it is safe: nothing is registered twice.
    """
    deps = boot.get_deps()
    if provider not in deps.providers:
        names = " or ".join(sorted(deps.providers))
        raise ConfigError(f"unknown provider {console.escape_control_chars(provider)!r}: use {names}")
    source = deps.providers[provider]
    begin = deps.database.run(current_time) - since
    pages = scan(deps, source, begin, include_foreign=include_foreign)
    preview = RecoveryOverview()
    for _ in _show_progress(preview.count(pages), "read"):
        pass
    must_ask = preview.poll_count > 0 and not dry_run and not yes
    if must_ask or not as_json:
        _print_preview(preview, source.name, begin, on_stderr=as_json)
    if must_ask:
        click.confirm(f"Register {preview.counts['unknown']} and poll {preview.poll_count}?", abort=True, err=True)
    # The list is read again, because it may have changed.
    pages = iter(()) if dry_run else scan(deps, source, begin, include_foreign=include_foreign)
    read = _show_progress(pages, "processed")
    result = register_pages(deps, source, read, owner=owner, actor="cli", send_wakes=publish.publish_wakes)
    if as_json:
        found = {match: preview.counts[match] for match in MATCH_TEXTS}
        first = [{"fate": item.match, **asdict(item.listed)} for item in preview.first]
        about = {"provider": source.name, "since": begin, "dry_run": dry_run}
        console.print_json({**about, "found": found, "first": first, **result})
    elif not dry_run:
        _print_result(deps, result, source.name)


def _show_progress(pages: Iterable[Sequence[ListedMatch]], verb: str) -> Iterator[Sequence[ListedMatch]]:
    """Yield the pages; print a line on standard error for each thousand predictions."""
    count = 0
    for page in pages:
        yield page
        before, count = count, count + len(page)
        if count // PROGRESS_EVERY > before // PROGRESS_EVERY:
            click.echo(f"{verb} {count} predictions", err=True)


def _print_preview(preview: RecoveryOverview, provider: str, begin: datetime, *, on_stderr: bool) -> None:
    total = sum(preview.counts.values())
    click.echo(f"{provider} lists {total} predictions since {begin:%Y-%m-%d %H:%M:%S} UTC", err=on_stderr)
    for match in MATCH_TEXTS:
        if preview.counts[match]:
            click.echo(f"{preview.counts[match]:>6}  {MATCH_TEXTS[match]}", err=on_stderr)
    for item in preview.first:
        listed = item.listed
        line = f"  {item.match}  {listed.external_id}  {listed.raw_status}  {listed.model or ''}"
        click.echo(console.escape_control_chars(line.rstrip())[:200], err=on_stderr)
    if preview.poll_count > len(preview.first):
        click.echo(f"  and {preview.poll_count - len(preview.first)} more", err=on_stderr)


def _print_result(deps: Deps, result: Counter[str], provider: str) -> None:
    click.echo(f"{result['registered']} registered, {result['polled']} due for a poll now")
    if result["unsent_wakes"]:
        click.echo(console.BROKER_UNAVAILABLE)
    if result["polled"] and any(row["target"] == provider for row in deps.database.run(pauses.list_pauses)):
        click.echo(f"{provider} is paused: nothing is polled before moorage resume {provider}")
