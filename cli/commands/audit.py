"""`moorage audit`: check the rules over PostgreSQL and storage, say what breaks them, and repair what can be."""

import contextlib
import dataclasses
import signal
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

import click

from cli import console
from db.audit.checks import CHECKS
from moorage.errors import MoorageError
from tasks.audit import repair as repairing
from tasks.audit import run as auditing
from tasks.audit.advice import REPAIRABLE, RULES, get_advice
from tasks.audit.findings import Finding
from tasks.audit.repair import RepairResult
from tasks.audit.run import DEFAULT_SAMPLE_SIZE, AuditReport
from worker import boot, publish

VERSION: Final = 1  # of the JSON document; a field may be added without a new one
EXIT_FINDINGS, EXIT_UNFINISHED = 1, 2

# Rules whose places have checks in no statement.
_MORE: Final = {4: ("objects", "sample"), 5: ("objects", "inputs"), 6: ("histories",), 7: ("histories",)}


@click.command()
@click.option("--deep", is_flag=True, help="Also read every kept object and recorded body and compare its digest.")
@click.option("--sample", default=DEFAULT_SAMPLE_SIZE, show_default=True, metavar="N",
              help="Ask storage for the digest of so many kept files, drawn at random.")  # fmt: skip
@click.option("--second-look", "second_look_seconds", type=click.FloatRange(min=0), metavar="SECONDS",
              help="How long to wait before what was found is looked at again: a lease; 0 for a system that is stopped.")  # fmt: skip  # noqa: E501 (one sentence)
@click.option("--repair", is_flag=True, help="Then wake what waits wrongly and fetch what is missing; deletes nothing.")
@click.option("--yes", is_flag=True, help="Repair without asking.")
@console.json_option
def audit(
    deep: bool,
    sample: int,
    second_look_seconds: float | None,
    repair: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """
    Check the rules of docs/design.md over PostgreSQL and storage.

    Exit status 1 on any finding that was not repaired, 2 when it could not finish. Without --repair it changes nothing.
    """
    if repair and as_json and not yes:
        raise click.UsageError("--json cannot ask: write --repair --yes")
    with _unfinished():
        report = auditing.run_audit(boot.get_deps(), deep=deep, second_look_seconds=second_look_seconds, sample=sample)
        if not as_json:
            _show(report)
        repaired = _repair(report, ask=not yes) if repair and report.findings else []
    if as_json:
        console.print_json(build_document(report, repaired))
    elif repaired:
        _show_repaired(repaired)
    done = sum(one.is_done for one in repaired)
    if len(report.findings) > done or report.unlisted:
        raise SystemExit(EXIT_FINDINGS)


@contextlib.contextmanager
def _unfinished() -> Iterator[None]:
    """End with status 2 when PostgreSQL or storage goes away, or somebody stops it; SIGTERM does what Ctrl-C does."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        _end("interrupted")
    except MoorageError as error:
        _end(str(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(why: str) -> None:
    click.echo(f"moorage: the audit could not finish: {why}", err=True)
    raise SystemExit(EXIT_UNFINISHED)


def _repair(report: AuditReport, *, ask: bool) -> list[RepairResult]:
    able = sum(finding.check in REPAIRABLE for finding in report.findings)
    if ask and able and not click.confirm(f"try to repair {able} of {len(report.findings)} findings?", default=False):
        return []
    return list(repairing.repair_findings(boot.get_deps(), report.findings, actor="cli", send=publish.publish_wakes))


def build_document(report: AuditReport, repaired: list[RepairResult]) -> dict[str, Any]:
    """Return the report as it is printed for programs; `version` changes when a field changes its meaning or goes."""
    done = {one.finding: one for one in repaired}
    return {
        "version": VERSION,
        "started_at": report.started_at,
        "ended_at": report.ended_at,
        "deep": report.deep,
        "second_look_seconds": report.second_look_seconds,
        "checked": report.checked,
        "rules": [{"rule": rule, "title": title, "checked": checked, "findings": findings}
                  for rule, title, checked, findings in summarize_rules(report)],
        "findings": [
            {**_fields(finding), "todo": get_advice(finding)}
            | ({"repaired": done[finding].is_done, "repair": done[finding].message} if finding in done else {})
            for finding in report.findings
        ],
        "unlisted": {str(check): count for check, count in report.unlisted.items()},
        "notes": [_fields(note) for note in report.notes],
    }  # fmt: skip


def _fields(finding: Finding) -> dict[str, Any]:
    return {**dataclasses.asdict(finding), "check": str(finding.check)}


def summarize_rules(report: AuditReport) -> list[tuple[int, str, dict[str, int], int]]:
    """Return number, title, what was checked (by place) and the findings of each rule, those not listed included."""
    found = Counter(finding.rule for finding in report.findings)
    for check, more in report.unlisted.items():
        found[check.rule] += more
    return [(rule, title, _checked(report, rule), found[rule]) for rule, title in RULES.items()]


def _checked(report: AuditReport, rule: int) -> dict[str, int]:
    places = dict.fromkeys(check.scope for check in CHECKS if check.rule == rule)
    return {place: report.checked.get(place, 0) for place in (*places, *_MORE.get(rule, ())) if place in report.checked}


def _show(report: AuditReport) -> None:
    rows = [
        (rule, title, ", ".join(f"{count} {place}" for place, count in checked.items() if count) or "nothing", findings)
        for rule, title, checked, findings in summarize_rules(report)
    ]
    console.print_parts(console.build_table("Rules of docs/design.md", ("rule", "that", "checked", "findings"), rows))
    depth = f"{report.checked.get('bytes', 0)} bytes read again" if report.deep else "existence and size of objects"
    click.echo(f"from {report.started_at:%Y-%m-%d %H:%M:%S} to {report.ended_at:%H:%M:%S} UTC; {depth}")
    if report.notes:
        click.echo(f"noted: {len(report.notes)} objects that no row names yet, or that the next sweep takes")
    if not report.findings:
        click.echo("no finding")
        return
    columns = ("rule", "subject", "id", "what is wrong", "what to do")
    lines = ((found.rule, found.subject, found.id, found.what, get_advice(found)) for found in report.findings)
    console.print_parts(console.build_table("Findings", columns, lines))
    more = sum(report.unlisted.values())
    click.echo(f"{len(report.findings)} findings{f', and {more} more of the same kinds' if more else ''}")


def _show_repaired(repaired: list[RepairResult]) -> None:
    columns = ("", "rule", "subject", "id", "what was done")
    rows = (
        ("done" if one.is_done else "left", one.finding.rule, one.finding.subject, one.finding.id, one.message)
        for one in repaired
    )
    console.print_parts(console.build_table("Repair", columns, rows))
    click.echo(f"{sum(one.is_done for one in repaired)} of {len(repaired)} repaired; audit again to see that it holds")
