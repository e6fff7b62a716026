"""`moorage audit`: check the rules of docs/design.md, report violations and repair some of them."""

import contextlib
import dataclasses
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import click

from cli import console
from db.audit.checks import CHECKS
from moorage.errors import MoorageError
from storage.proofs import DESCRIPTIONS
from tasks.audit.advice import REPAIRABLE, RULES, get_advice
from tasks.audit.findings import Finding
from tasks.audit.repair import RepairResult, repair_findings
from tasks.audit.run import DEFAULT_SAMPLE_SIZE, AuditReport, run_audit
from worker import boot, publish

VERSION: Final = 1  # of the JSON document; increased when a field is removed or changes its meaning
EXIT_FINDINGS, EXIT_UNFINISHED = 1, 2

# Scans whose checks are not SQL statements, by rule.
_OTHER_SCANS: Final = {
    4: ("objects", "sample", "read_back"),
    5: ("objects", "inputs"),
    6: ("histories",),
    7: ("histories",),
}


@click.command()
@click.option("--deep", is_flag=True, help="Also read every kept object and recorded body and compare its digest.")
@click.option("--sample", default=DEFAULT_SAMPLE_SIZE, show_default=True, metavar="N",
              help="Number of random files whose digest storage reports, or which are read back.")  # fmt: skip
@click.option("--second-look", "second_look_seconds", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Delay before findings are rechecked; default: a lease. Use 0 for a stopped system.")  # fmt: skip
@click.option("--repair", is_flag=True, help="Repair findings: wake rows, fetch missing objects. Deletes nothing.")
@click.option("--yes", is_flag=True, help="Repair without confirmation.")
@console.json_flag
def audit(deep: bool, sample: int, second_look_seconds: float | None, repair: bool, yes: bool, as_json: bool) -> None:
    """
    Check the rules of docs/design.md over PostgreSQL and storage.

    Exit status: 1 if a finding was not repaired, 2 if the audit could not finish. Changes nothing without --repair.
    """
    if repair and as_json and not yes:
        raise click.UsageError("--json cannot ask for confirmation: use --repair --yes")
    with _exit_if_unfinished():
        with console.Progress("checking rows and objects") as progress:
            report = run_audit(
                boot.get_deps(),
                deep=deep,
                second_look_seconds=second_look_seconds,
                sample=sample,
                report_progress=progress.update,
            )
        if not as_json:
            console.print_parts(*_format_report(report))
        results = _repair(report, ask=not yes) if repair and report.findings else []
    if as_json:
        console.print_json(_build_document(report, results))
    done = sum(result.is_done for result in results)
    if results and not as_json:
        rows = [{**_fields(x.finding), "": "done" if x.is_done else "left", "result": x.message} for x in results]
        tables = console.build_tables("Repair", rows, "", "rule", "subject", "id", "result")
        console.print_parts(*tables, f"{done} of {len(results)} repaired; run the audit again to verify")
    if len(report.findings) > done or report.unlisted:
        raise SystemExit(EXIT_FINDINGS)


@contextlib.contextmanager
def _exit_if_unfinished() -> Iterator[None]:
    """Exit with status 2 if PostgreSQL or storage fails, on Ctrl-C and on SIGTERM."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (KeyboardInterrupt, MoorageError) as error:
        click.echo(f"moorage: the audit could not finish: {str(error) or 'interrupted'}", err=True)
        raise SystemExit(EXIT_UNFINISHED) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _repair(report: AuditReport, *, ask: bool) -> list[RepairResult]:
    repairable = sum(finding.check in REPAIRABLE for finding in report.findings)
    question = f"try to repair {repairable} of {len(report.findings)} findings?"
    if ask and repairable and not click.confirm(question, default=False):
        return []
    return list(repair_findings(boot.get_deps(), report.findings, actor="cli", send=publish.publish_wakes))


def _build_document(report: AuditReport, results: list[RepairResult]) -> dict[str, Any]:
    repaired = {result.finding: {"repaired": result.is_done, "repair": result.message} for result in results}
    return {
        "version": VERSION,
        **{
            x: getattr(report, x) for x in ("started_at", "ended_at", "deep", "second_look_seconds", "checked", "proof")
        },
        "rules": _summarize_rules(report),
        "findings": [{**_fields(x), "todo": get_advice(x), **repaired.get(x, {})} for x in report.findings],
        "unlisted": {str(check): count for check, count in report.unlisted.items()},
        "notes": [_fields(note) for note in report.notes],
    }


def _fields(finding: Finding) -> dict[str, Any]:
    return {**dataclasses.asdict(finding), "check": str(finding.check)}


def _summarize_rules(report: AuditReport) -> list[dict[str, Any]]:
    findings = Counter(finding.rule for finding in report.findings)
    for check, count in report.unlisted.items():
        findings[check.rule] += count
    rules = []
    for rule, title in RULES.items():
        scopes = dict.fromkeys(check.scope for check in CHECKS if check.rule == rule)
        names = (*scopes, *_OTHER_SCANS.get(rule, ()))
        checked = {name: report.checked[name] for name in names if name in report.checked}
        rules.append({"rule": rule, "title": title, "checked": checked, "findings": findings[rule]})
    return rules


def _format_report(report: AuditReport) -> Iterator[console.Part]:
    document = _build_document(report, [])
    yield from console.build_tables(
        "Rules of docs/design.md",
        document["rules"],
        *("rule", ("text", "title")),
        ("checked", lambda rule: ", ".join(f"{n} {name}" for name, n in rule["checked"].items() if n) or "nothing"),
        "findings",
    )
    yield f"from {report.started_at:%Y-%m-%d %H:%M:%S} to {report.ended_at:%H:%M:%S} UTC; {describe_proof(report)}"
    yield f"storage: {DESCRIPTIONS[report.proof] if report.proof else 'checksums unknown: run moorage doctor'}"
    if report.notes:
        yield f"notes: {len(report.notes)} objects that no row names; the next sweep quarantines them"
    columns = ("rule", "subject", "id", ("problem", "what"), ("advice", "todo"))
    yield from console.build_tables("Findings", document["findings"], *columns)
    unlisted = sum(report.unlisted.values())
    more = f", and {unlisted} more of the same kinds" if unlisted else ""
    yield f"{len(report.findings)} findings{more}" if report.findings else "no finding"


def describe_proof(report: AuditReport) -> str:
    """Return what the audit of objects rests on: storage reports digests, or objects were read."""
    if report.deep:
        return f"{report.checked.get('bytes', 0)} bytes read"
    sample, read_back = report.checked.get("sample", 0), report.checked.get("read_back", 0)
    proofs = [f"{sample - read_back} by storage's SHA-256"] if sample > read_back else []
    proofs += [f"{read_back} read back, because storage reports no SHA-256 of them"] if read_back else []
    return f"existence and size of objects; digests of {sample}: {', '.join(proofs) or 'none'}"
