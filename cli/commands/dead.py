"""`moorage dead`: list, replay and discard dead letters, singly or in bulk."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import click

from cli import console
from cli.commands.job import job_option
from db import dead_letters, quarantine
from db.connection import Connection, Row
from db.dead_letters import FIRST, DeadLetterFilter
from db.reports.lists import require_provider
from db.reports.show import find_rows
from moorage import quarantine_links
from moorage.errors import ConfigError
from moorage.model import DeadLetter
from tasks.bulk_dead_letters import Action, apply_to_page
from tasks.step import Deps
from worker import boot, publish

ACTOR: Final = "cli"
PAGE: Final = 100
REFUSALS_SHOWN: Final = 20
_GROUP_COLUMNS: Final[tuple[console.Column, ...]] = (
    *("count", "provider", "step", "category", "error"),
    ("replay may help", "retryable"),
    ("newest", lambda group: f"{group['newest']:%Y-%m-%d %H:%M:%S}"),
    ("example", lambda group: group["example"][:120]),
)
_LETTER_COLUMNS: Final[tuple[console.Column, ...]] = (
    ("id", lambda letter: console.shorten_id(letter["id"])),
    ("at", lambda letter: f"{letter['created_at']:%Y-%m-%d %H:%M:%S}"),
    *("provider", "step", "category", "error"),
    ("job", lambda letter: letter["job_id"] and console.shorten_id(letter["job_id"])),
    ("reason", lambda letter: letter["reason"][:120]),
)


@click.group()
def dead() -> None:
    """List, show, replay or discard dead letters."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        job_option,
        click.option("--category", help="Filter by category, for example DOWNLOAD_FAILED."),
        click.option("--step", help="Filter by step: ingest, poll, keep, discard, notify or drain."),
        click.option("--provider", help="Filter by provider."),
    ):
        command = option(command)
    return command


@dead.command("list")
@_filters
@click.option("--all", "is_ungrouped", is_flag=True, help="List single dead letters instead of groups.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="With --all, newest first.")
@console.json_option
def list_dead_letters(is_ungrouped: bool, limit: int, **filters: Any) -> console.Output:
    """List open dead letters, grouped by provider, step, category and error."""
    deps = boot.get_deps()
    database, criteria = deps.database, _build_filter(deps, filters)
    if is_ungrouped:
        letters = database.run(lambda conn: dead_letters.list_newest(conn, criteria, limit=limit))
        rows, columns = [asdict(letter) for letter in letters], _LETTER_COLUMNS
    else:
        rows, columns = database.run(lambda conn: dead_letters.count_groups(conn, criteria)), _GROUP_COLUMNS
    tables = console.build_tables("Open dead letters", rows, *columns)
    return rows, tables or ["no open dead letter" + (" matches" if any(filters.values()) else "")]


@dead.command("show")
@click.argument("dead_letter")
@console.json_option
def show_dead_letter(dead_letter: str) -> console.Output:
    """Show one dead letter with its facts, and a link to its file in quarantine that is valid for five minutes."""
    deps = boot.get_deps()
    letter = deps.database.run(partial(_get, text=dead_letter))
    fields = asdict(letter) | {"quarantine": _find_quarantined_file(deps, letter)}
    pairs = {name: value for name, value in fields.items() if name not in ("facts", "quarantine")}
    pairs |= {f"fact {name}": value for name, value in letter.facts.items()}
    pairs |= {f"quarantine {name}": value for name, value in (fields["quarantine"] or {}).items()}
    return fields, console.format_facts(pairs)


def _find_quarantined_file(deps: Deps, letter: DeadLetter) -> Row | None:
    file = deps.database.run(partial(quarantine.find, output_id=letter.subject_id))
    if file is None:
        return None
    url = quarantine_links.build_link(deps.settings, letter.subject_id, time.time())
    if url is None:  # no API that could serve it
        seconds = quarantine_links.LINK_SECONDS
        url = deps.storage.presign_get(deps.storage.private_bucket, file["key"], seconds)
    return {**file, "url": url}


def _build_filter(deps: Deps, filters: dict[str, Any]) -> DeadLetterFilter:
    if name := filters["provider"]:
        deps.database.run(partial(require_provider, kind="dead_letters", name=name, providers=deps.providers))
    return DeadLetterFilter(**filters)


def _add_bulk_command(name: Action, done: str) -> None:
    @dead.command(name, help=f"{name.capitalize()} dead letters, by id or all that match the filters.")
    @click.argument("names", nargs=-1, metavar="ID...")
    @_filters
    @click.option("--all", "all_open", is_flag=True, help="All open dead letters.")
    @click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
    @console.json_flag
    def command(names: tuple[str, ...], all_open: bool, yes: bool, as_json: bool, **filters: Any) -> None:
        deps, note = boot.get_deps(), filters.pop("note", "")
        criteria = _build_filter(deps, filters)
        if bool(names) == bool(all_open or any(filters.values())):
            raise click.UsageError("name dead letters by id, or select them by filters or --all")
        letters = [deps.database.run(partial(_get, text=text)) for text in names]
        if letters:
            criteria = DeadLetterFilter(ids=[letter.id for letter in letters])
        if not yes and not _confirm(deps, letters, criteria, name):
            raise click.Abort
        _print_result(_apply_action(deps, criteria, name, note), done, as_json)

    if name == "acknowledge":
        command.params.append(click.Option(["--note"], required=True, help="What is known about them."))


_add_bulk_command("replay", "replayed")
_add_bulk_command("discard", "discarded")
_add_bulk_command("acknowledge", "acknowledged")


def _get(conn: Connection, text: str) -> DeadLetter:
    matches = [match for match in find_rows(conn, text, ()) if match.subject == "dead_letter"]
    letter = dead_letters.get(conn, matches[0].id) if len(matches) == 1 else None
    if letter is None:
        problem = f"{len(matches)} dead letters begin with" if matches else "no dead letter"
        raise ConfigError(f"{problem} {text}: see moorage dead list --all")
    return letter


def _confirm(deps: Deps, letters: list[DeadLetter], criteria: DeadLetterFilter, name: str) -> bool:
    if letters:
        count = len(letters)
        click.echo("\n".join(_format_group(asdict(x) | {"example": x.reason}) for x in letters), err=True)
    else:
        groups = deps.database.run(lambda conn: dead_letters.count_groups(conn, criteria))
        count = sum(group["count"] for group in groups)
        click.echo("\n".join(f"{group['count']:>6}  {_format_group(group)}" for group in groups), err=True)
    if not count:
        return True  # the result says that nothing matched
    return click.confirm(f"{name.capitalize()} {count} dead letter{'s' if count > 1 else ''}?", err=True)


def _format_group(group: Row) -> str:
    parts = (group["provider"] or "-", group["step"], group["category"], group["error"], group["example"])
    return console.escape_control_chars("  ".join(parts)[:200])


def _apply_action(deps: Deps, criteria: DeadLetterFilter, action: Action, note: str) -> dict[str, Any]:
    """Apply the action to all that match; wakes are published after the commits, page by page."""
    done, unsent, refused, after, remaining = 0, 0, [], FIRST, 1
    while remaining:
        page = apply_to_page(deps.database, criteria, action, ACTOR, after=after, note=note, limit=PAGE)
        done, after, remaining = done + page.done, page.after, page.remaining
        refused += page.refused
        unsent += len(page.wakes) - publish.publish_wakes(page.wakes)
    return {"done": done, "refused": refused, "unsent_wakes": unsent}


def _print_result(result: dict[str, Any], done: str, as_json: bool) -> None:
    refused = result["refused"]
    if as_json:
        console.print_json(result)
    else:
        console.print_parts(f"{result['done']} {done}" + (f", {len(refused)} refused" if refused else ""))
        console.print_parts(*(f"  refused {item['id']}: {item['reason']}" for item in refused[:REFUSALS_SHOWN]))
        if result["unsent_wakes"]:
            click.echo(console.BROKER_UNAVAILABLE)
    if refused:
        raise SystemExit(1)
