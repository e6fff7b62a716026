"""Output of commands: tables, lines and JSON. Control characters in external text are escaped."""

import dataclasses
import functools
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Self
from uuid import UUID

import click
from rich.console import Console
from rich.measure import Measurement
from rich.status import Status
from rich.table import Table
from rich.text import Text

from moorage.text import escape_control_chars as escape_control_chars
from moorage.text import format_age as format_age
from moorage.text import format_duration as format_duration

Part = Table | str  # of what a command prints: a table or a line
Column = str | tuple[str, str | int | Callable[[Any], object]]  # the title and what it shows: a key, or a function

BROKER_UNAVAILABLE: Final = "the broker is unavailable: processing starts when it is available again"
Output = tuple[Any, Iterable[Part]]  # of a command: the JSON document, and the same for a person
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

PROGRESS_SECONDS: Final = 3.0
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "late": "bold red", "unavailable": "bold red"}
_PIPE_COLUMNS: Final = 400  # a pipe or a file has no width: one line per row
_IDS: Final = frozenset({"id"})
_ID_CHARS: Final = 36


class Progress:
    """Shows on standard error what a command waits for: in place on a terminal, elsewhere a line every few seconds."""

    def __init__(self, text: str) -> None:
        self._console = Console(stderr=True, markup=False, highlight=False)
        self._status = Status(Text(text), console=self._console)
        self._printed_at = time.monotonic()  # a command that ends soon prints none

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def update(self, text: str) -> None:
        text = escape_control_chars(text)
        self._status.update(Text(text))
        if not self._console.is_terminal and time.monotonic() - self._printed_at > PROGRESS_SECONDS:
            click.echo(text, err=True)
            self._printed_at = time.monotonic()


def json_option(function: Callable[..., Output]) -> Callable[..., None]:
    """Add --json to a command, of whose output the one or the other form is printed."""

    @json_flag
    @functools.wraps(function)
    def command(as_json: bool, **arguments: Any) -> None:
        document, parts = function(**arguments)
        if as_json:
            print_json(document)
        else:
            print_parts(*parts)

    return command


def print_json(value: Any) -> None:
    """Print a value as JSON; times in ISO 8601, UUIDs as strings, dataclasses as objects."""
    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=True))


def build_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table without borders; cells like "ok", "fail" and "late" are coloured."""
    built = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        is_id = column in _IDS  # never wrapped, so that it can be copied
        built.add_column(column, overflow="fold", no_wrap=is_id, min_width=_ID_CHARS if is_id else None)
    for row in rows:
        built.add_row(*(format_cell(value) for value in row))
    return built


def build_tables(title: str, records: Collection[Any], *columns: Column) -> list[Part]:
    """Return a table of records; none if there is no record."""
    named = [(column, column) if isinstance(column, str) else column for column in columns]
    rows = ([cell(record) if callable(cell) else record[cell] for _, cell in named] for record in records)
    return [build_table(title, [name for name, _ in named], rows)] if records else []


def format_cell(value: object) -> Text:
    """Return a value as the text of a cell: empty for None, with control characters escaped."""
    text = "" if value is None else escape_control_chars(str(value))
    return Text(text, style=_STYLES.get(text, ""))


def print_screen(*parts: Part) -> None:
    """Print tables and lines in place of the last screen, as many as a terminal has lines."""
    if not sys.stdout.isatty():
        print_parts(*parts)
        return
    console = _console()
    with console.capture() as capture:
        print_parts(*parts, console=console)
    click.clear()
    click.echo("\n".join(capture.get().split("\n")[: shutil.get_terminal_size().lines - 1]))


def print_parts(*parts: Part, console: Console | None = None) -> None:
    """Print tables and lines, with an empty line after each table."""
    console = console or _console()
    for part in parts:
        if isinstance(part, str):
            console.print(Text(escape_control_chars(part)), soft_wrap=True)
            continue
        is_wide = Measurement.get(console, console.options.update(max_width=10_000), part).maximum > console.width
        console.print(_stack(part) if is_wide else part, soft_wrap=is_wide)
        console.print()


def _stack(table: Table) -> Text:
    """Return a table that is wider than the terminal as text: pairs of column and value, as many in a line as fit."""
    lines: list[str] = []
    names = [str(column.header) for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        line, mark = "", "- "
        for pair in (f"{name}: {cell}".removeprefix(": ") for name, cell in zip(names, row, strict=True) if str(cell)):
            if line and len(line) + len(pair) + 4 > get_width():
                lines += wrap_text(line, mark)
                line, mark = "", "  "
            line += f"  {pair}" if line else pair
        lines += wrap_text(line, mark)
    return Text("\n").join((Text(str(table.title), "bold"), *map(Text, lines)))


def wrap_text(text: str, mark: str = "  ") -> list[str]:
    """Return the lines of a text that fit the terminal, the first after a mark; an address is never broken."""
    rest = " " * len(mark)
    return textwrap.wrap(
        text, get_width(), initial_indent=mark, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, with cells padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def shorten_id(row_id: UUID) -> str:
    """Return the beginning of an id, with its time and 12 random bits: enough for `moorage show`."""
    return str(row_id)[:18]


def get_width() -> int:
    """Return the columns of the terminal, or those that COLUMNS states."""
    return shutil.get_terminal_size((_PIPE_COLUMNS, 24)).columns


def format_facts(pairs: Mapping[str, object]) -> list[str]:
    """Return aligned "name  value" lines; None values are omitted."""
    return align([(name, str(value)) for name, value in pairs.items() if value is not None])


def _console() -> Console:
    return Console(file=sys.stdout, width=get_width(), markup=False, highlight=False, emoji=False)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")
