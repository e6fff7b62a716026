"""`moorage dead`: the dead letters, grouped by what is wrong, and what is done about them, one or all at once."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final
from uuid import UUID

import click

from cli import console
from db import dead_letters
from db.connection import Connection, Row
from db.dead_letters import DeadLetterFilter
from db.reports import show as history
from moorage.errors import ConfigError, Refused
from moorage.model import DeadLetter, Wake
from tasks.jobs import replay as replaying
from tasks.step import Deps
from worker import boot, publish

ACTOR: Final = "cli"
PAGE: Final = 100
REFUSALS_SHOWN: Final = 20

Act = Callable[[Connection, UUID, str], Wake | None]


@click.group()
def dead() -> None:
    """List, show, replay or discard dead letters."""


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--job", "job_id", type=click.UUID, help="Only those of one job."),
        click.option("--category", help="Only those of one category, for example DOWNLOAD_FAILED."),
        click.option("--step", help="Only those of one step: ingest, poll, keep, discard, notify or drain."),
        click.option("--provider", help="Only those of one provider."),
    ):
        command = option(command)
    return command


@dead.command("list")
@_filters
@click.option("--all", "each", is_flag=True, help="List each instead of groups.")
@click.option("--limit", default=1000, show_default=True, help="With --all: at most so many, newest first.")
@console.json_option
def list_(each: bool, limit: int, as_json: bool, **filters: Any) -> None:
    """List what waits for a person, grouped by provider, step, category and error."""
    database, which = boot.get_deps().database, DeadLetterFilter(**filters)
    found: Any
    if each:
        found = database.run(lambda conn: dead_letters.list_newest(conn, which, limit=limit))
    else:
        found = database.run(lambda conn: dead_letters.count_groups(conn, which))
    if as_json:
        console.print_json(found)
    elif not found:
        click.echo("no open dead letter" + (" matches" if any(filters.values()) else ""))
    else:
        console.print_parts(_each(found) if each else _groups(found))


@dead.command()
@click.argument("dead_letter")
@console.json_option
def show(dead_letter: str, as_json: bool) -> None:
    """Show one dead letter with all that was measured."""
    letter = _get(boot.get_deps(), dead_letter)
    if as_json:
        console.print_json(letter)
        return
    pairs = {name: getattr(letter, name) for name in letter.__dataclass_fields__ if name != "facts"}
    console.print_parts(*console.format_facts({**pairs, **{f"fact {k}": v for k, v in letter.facts.items()}}))


def _bulk(name: str, act: Act, done: str) -> None:
    @dead.command(name, help=f"{name.capitalize()} dead letters: those named, or all that match the filters.")
    @click.argument("names", nargs=-1, metavar="ID...")
    @_filters
    @click.option("--all", "each", is_flag=True, help="All that are open.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @console.json_option
    def command(names: tuple[str, ...], each: bool, yes: bool, as_json: bool, **filters: Any) -> None:
        deps, which = boot.get_deps(), DeadLetterFilter(**filters)
        if bool(names) == bool(each or any(filters.values())):
            raise click.UsageError("name dead letters by their ids, or choose them by filters or --all")
        chosen = [_get(deps, text) for text in names]
        if not yes and not _agreed(deps, chosen, which, name):
            raise click.Abort
        ids: Iterable[UUID] = [letter.id for letter in chosen] if chosen else _matching(deps, which)
        _report(_carry_out(deps, ids, act), done, as_json)


_bulk("replay", replaying.replay_dead_letter, "replayed")
_bulk("discard", replaying.discard_dead_letter, "discarded")


def _get(deps: Deps, text: str) -> DeadLetter:
    return deps.database.run(lambda conn: _find(conn, text))


def _find(conn: Connection, text: str) -> DeadLetter:
    found = [match for match in history.find_rows(conn, text, ()) if match.subject == "dead_letter"]
    letter = dead_letters.get(conn, found[0].id) if len(found) == 1 else None
    if letter is None:
        what = f"{len(found)} dead letters begin with" if found else "no dead letter"
        raise ConfigError(f"{what} {text}: see moorage dead list --all")
    return letter


def _agreed(deps: Deps, chosen: list[DeadLetter], which: DeadLetterFilter, name: str) -> bool:
    """Show on standard error how many there are and of which groups, and ask."""
    if chosen:
        count = len(chosen)
        click.echo("\n".join(_line(_as_group(letter)) for letter in chosen), err=True)
    else:
        groups = deps.database.run(lambda conn: dead_letters.count_groups(conn, which))
        count = sum(group["count"] for group in groups)
        click.echo("\n".join(f"{group['count']:>6}  {_line(group)}" for group in groups), err=True)
    if not count:
        return True  # the report says that nothing matched
    return click.confirm(f"{name.capitalize()} {count} dead letter{'s' if count > 1 else ''}?", err=True)


def _as_group(letter: DeadLetter) -> Row:
    """Return a dead letter as the row of a group of one."""
    return {"provider": letter.provider, "step": letter.step, "category": letter.category, "error": letter.error,
            "example": letter.reason}  # fmt: skip


def _line(group: Row) -> str:
    parts = (group["provider"] or "-", group["step"], group["category"], group["error"], group["example"])
    return console.escape_control_chars("  ".join(parts)[:200])


def _matching(deps: Deps, which: DeadLetterFilter) -> Iterator[UUID]:
    """Go through all that match, a page in memory."""
    after = UUID(int=0)
    while ids := deps.database.run(partial(dead_letters.list_ids, criteria=which, after=after, limit=PAGE)):
        yield from ids
        after = ids[-1]


def _carry_out(deps: Deps, ids: Iterable[UUID], act: Act) -> dict[str, Any]:
    """Take them one by one, each in a transaction of its own; wakes are sent after the commits, a page at a time."""
    done, unsent, refused = 0, 0, []
    source = iter(ids)
    while some := list(islice(source, PAGE)):
        wakes = []
        for dead_letter_id in some:
            try:
                wake = deps.database.run(partial(_act, act=act, dead_letter_id=dead_letter_id))
            except Refused as error:
                refused.append({"id": dead_letter_id, "reason": str(error)})
                continue
            done += 1
            wakes += [wake] if wake else []
        unsent += len(wakes) - publish.publish_wakes(wakes) if wakes else 0
    return {"done": done, "refused": refused, "unsent_wakes": unsent}


def _act(conn: Connection, act: Act, dead_letter_id: UUID) -> Wake | None:
    return act(conn, dead_letter_id, ACTOR)


def _report(result: dict[str, Any], done: str, as_json: bool) -> None:
    refused = result["refused"]
    if as_json:
        console.print_json(result)
    else:
        click.echo(f"{result['done']} {done}" + (f", {len(refused)} refused" if refused else ""))
        for one in refused[:REFUSALS_SHOWN]:
            click.echo(console.escape_control_chars(f"  refused {one['id']}: {one['reason']}"))
        if result["unsent_wakes"]:
            click.echo("the broker is away: the work begins when it is back")
    if refused:
        raise SystemExit(1)


def _groups(groups: list[Row]) -> Any:
    columns = ("count", "provider", "step", "category", "error", "can be replayed", "newest", "example")
    names = ("count", "provider", "step", "category", "error", "retryable")
    rows = [(*(g[n] for n in names), f"{g['newest']:%Y-%m-%d %H:%M:%S}", g["example"][:120]) for g in groups]
    return console.build_table("Open dead letters", columns, rows)


def _each(letters: list[DeadLetter]) -> Any:
    columns = ("id", "at", "provider", "step", "category", "error", "job", "reason")
    rows = [
        (x.id, f"{x.created_at:%Y-%m-%d %H:%M:%S}", x.provider, x.step, x.category, x.error, x.job_id, x.reason[:120])
        for x in letters
    ]
    return console.build_table("Open dead letters", columns, rows)
