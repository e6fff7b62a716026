"""`moorage audit`: check the rules over PostgreSQL and storage, and say what breaks them."""

import click

from tasks import audit as auditing
from tasks.audit import AuditReport
from worker import boot, console


@click.command()
@click.option("--deep", is_flag=True, help="Also read every kept object again and compare its digest.")
@click.option("--second-look", "second_look_seconds", default=3.0, show_default=True, metavar="SECONDS",
              help="How long to wait before what was found is looked at again.")  # fmt: skip
@console.as_json
def audit(deep: bool, second_look_seconds: float, as_json: bool) -> None:
    """Check the rules of docs/design.md over PostgreSQL and storage. Exit status 1 on any finding. Changes nothing."""
    report = auditing.run(boot.deps(), deep=deep, second_look_seconds=second_look_seconds)
    if as_json:
        console.emit(report)
    else:
        _show(report)
    if report.findings:
        raise SystemExit(1)


def _show(report: AuditReport) -> None:
    checked = ", ".join(f"{count} {name}" for name, count in report.checked.items() if count)
    click.echo(f"checked: {checked or 'nothing is there yet'}")
    if report.notes:
        click.echo(f"noted: {len(report.notes)} objects that no row names, of work in flight or of the last hour")
    if not report.findings:
        click.echo("no finding")
        return
    columns = ("rule", "subject", "id", "what is wrong")
    rows = ((finding.rule, finding.subject, finding.id, finding.what) for finding in report.findings)
    console.show(console.table("Findings", columns, rows))
    click.echo(f"{'at least ' if report.is_cut else ''}{len(report.findings)} findings")
