"""`moorage recover`: what a provider made in the last hours, and what of it is missing here."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import click

from cli import console
from db import pauses
from db.connection import current_time
from moorage.errors import ConfigError
from providers.base import Provider
from tasks.predictions import recover as recovering
from tasks.predictions.recover import MATCHES, ListedMatch, Match
from tasks.step import Deps
from worker import boot, publish

LINES_SHOWN: Final = 10
PROGRESS_EVERY: Final = 1000
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LENGTH: Final = re.compile(r"([0-9]{1,6})([smhd])")
WHAT: Final[dict[Match, str]] = {
    "unknown": "unknown here: to be registered and polled",
    "live": "known, still running: to be polled now",
    "ended": "known and over: nothing to do",
    "lost": "known and given up: moorage dead list, then replay",
    "foreign": "unknown, and their webhook is not ours: left alone (--all takes them)",
}


class _Length(click.ParamType[timedelta]):
    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read 90s, 30m, 2h or 1d."""
        if isinstance(value, timedelta):
            return value
        match = _LENGTH.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no length of time: write for example 90s, 30m, 2h or 1d", param, ctx)
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


@dataclass
class _Preview:
    """What a provider made: how many of each fate, and the first that something is to be done about."""

    counts: Counter[Match] = field(default_factory=Counter)
    first: list[ListedMatch] = field(default_factory=list)

    def add(self, page: list[ListedMatch]) -> None:
        self.counts += recovering.count_matches(page)
        todo = [seen for seen in page if seen.match in ("unknown", "live")]
        self.first += todo[: LINES_SHOWN - len(self.first)]

    @property
    def todo(self) -> int:
        return self.counts["unknown"] + self.counts["live"]


@dataclass
class _Done:
    registered: int = 0
    polled: int = 0
    unsent_wakes: int = 0


class _Progress:
    """A line on standard error for each thousand."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0

    def add(self, count: int) -> None:
        before, self._count = self._count, self._count + count
        if self._count // PROGRESS_EVERY > before // PROGRESS_EVERY:
            click.echo(f"{self._what} {self._count} predictions", err=True)


@click.command()
@click.argument("provider")
@click.option("--since", type=_Length(), default="2h", show_default=True, help="How far back: 90s, 30m, 2h, 1d.")
@click.option("--owner", default="recovered", show_default=True, help="Whose jobs the unknown ones become.")
@click.option("--all", "each", is_flag=True, help="Also those whose webhook does not point at our PUBLIC_URL.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@console.json_option
def recover(provider: str, since: timedelta, owner: str, each: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """
    List what PROVIDER made, register what is unknown here, and poll it and what is still awaited.

    For after an outage that outlasted the provider's retries. It may be run again: what is known is not made twice.
    """
    deps = boot.get_deps()
    asked = _provider(deps, provider)
    begin = deps.database.run(current_time) - since
    preview = _preview(deps, asked, begin, each=each)
    is_asking = preview.todo > 0 and not dry_run and not yes
    if is_asking or not as_json:
        _show(preview, asked.name, begin, on_stderr=as_json)
    if is_asking:
        click.confirm(f"Register {preview.counts['unknown']} and poll {preview.todo}?", abort=True, err=True)
    done = _Done() if dry_run else _carry_out(deps, asked, begin, each=each, owner=owner)
    if as_json:
        console.print_json(_plain(preview, done, asked.name, begin, dry_run=dry_run))
    elif not dry_run:
        _report(deps, done, asked.name)


def _provider(deps: Deps, name: str) -> Provider:
    if name not in deps.providers:
        raise ConfigError(
            f"there is no provider {console.escape_control_chars(name)!r}: write {' or '.join(sorted(deps.providers))}"
        )
    return deps.providers[name]


def _preview(deps: Deps, provider: Provider, begin: datetime, *, each: bool) -> _Preview:
    """Go through the whole list once; only counts and the first lines are held."""
    preview, looked_at = _Preview(), _Progress("looked at")
    for page in recovering.scan(deps, provider, begin, include_foreign=each):
        preview.add(page)
        looked_at.add(len(page))
    return preview


def _carry_out(deps: Deps, provider: Provider, begin: datetime, *, each: bool, owner: str) -> _Done:
    """Go through the list again, since it may have changed: act on each page, and send its wakes after its commits."""
    done, acted_on = _Done(), _Progress("went through")
    for page in recovering.scan(deps, provider, begin, include_foreign=each):
        taken = recovering.register_page(deps, provider, page, owner=owner)
        done.registered += taken.registered
        done.polled += sum(wake.step == "poll" for wake in taken.wakes)
        done.unsent_wakes += len(taken.wakes) - (publish.publish_wakes(taken.wakes) if taken.wakes else 0)
        acted_on.add(len(page))
    return done


def _show(preview: _Preview, provider: str, begin: datetime, *, on_stderr: bool) -> None:
    total = sum(preview.counts.values())
    click.echo(f"{provider} made {total} predictions since {begin:%Y-%m-%d %H:%M:%S} UTC", err=on_stderr)
    for fate in MATCHES:
        if preview.counts[fate]:
            click.echo(f"{preview.counts[fate]:>6}  {WHAT[fate]}", err=on_stderr)
    for seen in preview.first:
        listed = seen.listed
        told = f"  {seen.match}  {listed.external_id}  {listed.raw_status}  {listed.model or ''}"
        click.echo(console.escape_control_chars(told.rstrip())[:200], err=on_stderr)
    if preview.todo > len(preview.first):
        click.echo(f"  and {preview.todo - len(preview.first)} more", err=on_stderr)


def _report(deps: Deps, done: _Done, provider: str) -> None:
    click.echo(f"{done.registered} registered, {done.polled} due for a poll now")
    if done.unsent_wakes:
        click.echo("the broker is away: the work begins when it is back")
    if done.polled and any(row["target"] == provider for row in deps.database.run(pauses.list_pauses)):
        click.echo(f"{provider} is paused: nothing is polled before moorage resume {provider}")


def _plain(preview: _Preview, done: _Done, provider: str, begin: datetime, *, dry_run: bool) -> dict[str, Any]:
    return {
        "provider": provider,
        "since": begin,
        "dry_run": dry_run,
        "found": {fate: preview.counts[fate] for fate in MATCHES},
        "first": [{"fate": seen.match, **asdict(seen.listed)} for seen in preview.first],
        **asdict(done),
    }
