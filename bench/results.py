"""
What every bench prints and writes: tables of text, figures, and the machine, load and commit of the run.

`save` writes `.moorage/bench/PART.json`; `python -m bench.report` copies the tables from there into the documentation.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

ROOT: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = ROOT / ".moorage" / "bench"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def format(self) -> str:
        """Return it in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(slots=True)
class Run:
    """One run of a part: created when it starts, saved when it ends."""

    part: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences below the tables
    figures: dict[str, Any] = field(default_factory=dict)  # everything that was measured, for other programs
    loads: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])
    started: float = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).timestamp())

    def note_load(self) -> None:
        self.loads.append(os.getloadavg()[0])

    def format(self) -> str:
        return "\n\n".join(
            [*(table.format() for table in self.tables), wrap(" ".join(self.notes)), wrap(self.describe())]
        )

    def describe(self) -> str:
        """Return machine, load, commit and date of the run."""
        git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        machine = f"{len(os.sched_getaffinity(0))} cores ({platform.machine()})"
        loads = f"load average {min(self.loads):.1f} to {max(self.loads):.1f}"
        return f"{machine}, {loads}; commit {commit or 'unknown'}; {datetime.datetime.now(datetime.UTC):%Y-%m-%d}."

    def save(self) -> None:
        """Print the tables and write the JSON."""
        self.note_load()
        seconds = datetime.datetime.now(datetime.UTC).timestamp() - self.started
        print(f"{self.format()}\n\n({self.part}: {seconds:.0f} s)", flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "description": self.describe(), "seconds": seconds}
        (FOLDER / f"{self.part}.json").write_text(json.dumps(content, indent=1, default=str) + "\n")


def start(part: str, parser: argparse.ArgumentParser) -> tuple[Run, argparse.Namespace]:
    """Parse the arguments and start a run. One with other than the defaults leaves the JSON for the documentation."""
    args = parser.parse_args()
    return Run(part if args == parser.parse_args([]) else f"{part}-custom"), args


def wrap(text: str) -> str:
    """Return a paragraph in lines of the documentation's width."""
    return textwrap.fill(text, 125, break_long_words=False, break_on_hyphens=False)


def load(part: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return what the last run of a part saved. Raises FileNotFoundError."""
    content: dict[str, Any] = json.loads((folder / f"{part}.json").read_text())
    return content


def alternate(names: Sequence[str], measure: Callable[[str], T], *, rounds: int) -> list[dict[str, T]]:
    """Measure each name once a round, every other round in reverse, so that a slow change of the machine hits all."""
    results = []
    for number in range(rounds):
        measured = {name: measure(name) for name in (names if number % 2 == 0 else list(reversed(names)))}
        results.append({name: measured[name] for name in names})
    return results


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def median_of(rounds: Sequence[Mapping[str, Mapping[str, Any]]], name: str, figure: str) -> float:
    return median(float(result[name][figure]) for result in rounds)


def median_ratio(rounds: Sequence[Mapping[str, Mapping[str, Any]]], name: str, other: str, figure: str) -> float:
    """Return the median of the ratio of a figure of `name` to that of `other` within a round."""
    return median(float(result[name][figure]) / float(result[other][figure]) for result in rounds)
