"""`moorage drill`: breaks everything on a random schedule while work runs; exits 0 only when nothing is lost."""

import json
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from db.connection import Connection, connect
from embedded import small_disk
from embedded.folders import occupy
from moorage.errors import DatabaseUnavailable
from simulation.chaos import refused
from simulation.chaos.deployment import deploy
from simulation.chaos.forms import FORMS, KILLS
from simulation.chaos.load import LoadGenerator, is_reported
from simulation.chaos.recovery import RecoveryMonitor
from simulation.chaos.schedule import FaultSchedule
from simulation.chaos.targets import Targets
from simulation.chaos.verdict import judge_drill
from simulation.job_check import Verdict
from simulation.progress import count_dead_letters, is_quiet, read_progress
from simulation.provider.ledger import LedgerIndex
from tasks.audit import run
from worker import boot
from worker.local_deployment import data_folder

QUIET_SECONDS: Final = 300.0  # at least; a long drill may take a quarter of its time to finish delayed work
_TIMES: Final = ("fault", "count", "median_s", "worst_s")
FORM_LIST: Final = "\n".join(f"  {name:<20} {form.description}" for name, form in FORMS.items())


@click.command(epilog=f"\b\nForms:\n{FORM_LIST}")
@click.option("--form", "form_name", type=click.Choice(list(FORMS)), default="all", show_default=True, metavar="NAME",
              help="Which faults to inject; see below.")  # fmt: skip
@click.option("--jobs", default=1000, show_default=True, help="Number of jobs; one in seven is a job request.")
@click.option("--minutes", default=5.0, show_default=True, help="Duration of load and faults.")
@click.option("--seed", type=int, help="Seed of the fault schedule; random by default.")
@click.option("--every", "every_seconds", default=2.5, show_default=True, help="Seconds between faults, on average.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=lambda: data_folder("drill"), show_default=".moorage/drill"
)
@click.option("--report", type=click.Path(path_type=Path), help="Also write the result as JSON to this file.")
def drill(
    form_name: str, jobs: int, minutes: float, seed: int | None, every_seconds: float, folder: Path, report: Path | None
) -> None:
    """Inject faults under load and verify that nothing is lost."""
    console, form = Console(highlight=False, soft_wrap=True), FORMS[form_name]
    if form.small_disk and not small_disk.enter_mount_namespace():
        console.print(
            f"drill {form_name}: SKIPPED, nothing was tested: neither root nor a user namespace may mount here"
        )
        _write(report, {"form": form_name, "skipped": True})
        raise SystemExit(2)
    seed = secrets.randbelow(10**6) if seed is None else seed
    click.get_current_context().with_resource(occupy(folder, clears=True))
    console.print(f"drill {form_name}: {jobs} jobs, {minutes:g} minutes, seed {seed}")
    changed = ", ".join(f"{k}={v}" for k, v in form.environment.items())
    console.print(f"settings that differ from the defaults: {changed}")
    with deploy(form, folder) as targets:
        load = LoadGenerator(targets.local, targets.standin, jobs=jobs, seconds=minutes * 60, seed=seed)
        running = Drill(console, targets, load, form.kinds, seed, every_seconds)
        result = {"form": form_name, **running.run(minutes * 60)}
    _write(report, result)
    if result["clean"]:
        shutil.rmtree(folder)
    else:
        console.print(f"data and logs are in {folder}")
    raise SystemExit(0 if result["clean"] else 1)


def _write(report: Path | None, result: dict[str, Any]) -> None:
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n")


def has_only_kills(landed: Mapping[str, int]) -> bool:
    """Return True if none of a form's own faults has landed: of three in a row, at most two are kills beside it."""
    return sum(landed.values()) > 2 and set(landed) <= set(KILLS)


class Drill:
    """One drill on running servers, over a connection that bypasses the proxies."""

    def __init__(
        self,
        console: Console,
        targets: Targets,
        load: LoadGenerator,
        weights: Mapping[str, int],
        seed: int,
        seconds: float,
    ) -> None:
        self._console, self._targets, self._load, self._seed = console, targets, load, seed
        self._replayed = self._downloads = 0
        self._recovery = RecoveryMonitor(targets.database_url)
        self._schedule = FaultSchedule(targets, self._recovery, weights, seed=seed, every_seconds=seconds)

    def run(self, seconds: float) -> dict[str, Any]:
        self._load.start()
        started = printed = time.monotonic()
        while not self._load.is_done or time.monotonic() - started < seconds:
            self._schedule.step(injects=True)
            if time.monotonic() - printed > 10:
                printed = time.monotonic()
                counts = f"jobs {len(self._load.runs)}  faults {len(self._schedule.landed)}"
                self._console.print(f"{printed - started:4.0f} s  {counts}")
            if self._load.error is not None:
                raise self._load.error
        self._console.print("no more faults; waiting for the end of all work ...")
        while not self._schedule.is_healed:
            self._schedule.step(injects=False)
        until = time.monotonic() + max(QUIET_SECONDS, seconds / 4)
        conn = self._connect(until)
        is_settled = self._await_settled(conn, until) and self._replay_refused(conn, until)
        result = self._judge(conn, is_settled=is_settled)
        conn.close()
        self._recovery.close()
        return result

    def _connect(self, until: float) -> Connection:
        """Connect as soon as PostgreSQL has recovered: the last fault may have killed it a moment ago."""
        while True:
            self._schedule.step(injects=False)
            try:
                return connect(self._targets.database_url, name="moorage-drill")
            except DatabaseUnavailable:
                if time.monotonic() > until:
                    raise

    def _await_settled(self, conn: Connection, until: float) -> bool:
        """Return True if all work ended in time. A prediction of a job request that still runs may reopen its job."""
        has_reported, jobs = False, len(self._load.runs)
        while time.monotonic() < until:
            self._schedule.step(injects=False)
            if is_quiet(read_progress(conn), jobs):
                index = LedgerIndex.build(self._targets.standin.get_ledger())
                has_reported = has_reported or is_reported(index, self._load.runs)
                if has_reported and is_quiet(read_progress(conn), jobs):
                    return True
        return False

    def _replay_refused(self, conn: Connection, until: float) -> bool:
        """Replay the files above the limit once it is raised; return True if all work ended in time."""
        files = refused.list_refused(conn)
        served = refused.count_served(self._targets.standin.get_ledger(), files)
        self._replayed = refused.replay_refused(conn, self._targets.local)
        self._console.print(f"{self._replayed} files were refused; the limit is raised and they are replayed ...")
        is_settled = self._await_settled(conn, until)
        self._downloads = refused.count_served(self._targets.standin.get_ledger(), files) - served
        return is_settled

    def _judge(self, conn: Connection, *, is_settled: bool) -> dict[str, Any]:
        deps, schedule = boot.get_deps(), self._schedule
        verdict = judge_drill(conn, deps.storage, self._targets.standin.get_ledger(), self._load.runs, schedule.landed)
        audit_findings = [str(finding) for finding in run.run_audit(deps, deep=True).findings]
        if not is_settled:
            verdict.unexpected.insert(0, "not all work ended in time after the last fault")
        if has_only_kills(schedule.count_by_kind()):
            verdict.unexpected.append("no fault of this form has landed, only kills beside it")
        verdict.unexpected += self._recovery.unrecovered
        verdict.lost += refused.list_lost(conn)
        if self._downloads:
            verdict.unexpected.append(f"replays downloaded {self._downloads} files instead of reading quarantine")
        self._print(conn, verdict, audit_findings)
        is_clean = verdict.is_clean and not audit_findings
        self._console.print(f"seed {self._seed}: {'[green]clean[/green]' if is_clean else '[red]NOT clean[/red]'}")
        counted = ("files", "acknowledged", "kept", "orphans", "lost", "doubled", "unexpected", "unexplained")
        return {
            "seed": self._seed,
            "clean": is_clean,
            "jobs": len(self._load.runs),
            "job_requests": asdict(verdict.job_requests),
            "faults": dict(schedule.count_by_kind()),
            "kills": schedule.kill_count,
            "replayed": self._replayed,
            **{name: getattr(verdict, name) for name in counted},
            "audit": audit_findings,
            "recovery": [dict(zip(_TIMES, times, strict=True)) for times in self._recovery.recovery_times()],
        }

    def _print(self, conn: Connection, verdict: Verdict, audit_findings: list[str]) -> None:
        load, schedule = self._load, self._schedule
        table = Table(show_header=False, title="Sent, and accounted for", title_justify="left")
        requests = f"{verdict.job_requests.sent} of them job requests"
        retries = f"{load.client.retry_count} requests failed and were repeated"
        table.add_row("sent", f"{len(load.runs)} jobs, {requests}, with {verdict.files} files; {retries}")
        table.add_row("acknowledged", f"{len(load.runs)} jobs, {verdict.acknowledged} webhooks")
        table.add_row("job requests", str(verdict.job_requests))
        table.add_row("kept", f"{verdict.kept} files")
        table.add_row("refused, then kept", f"{self._replayed} files by replays of their dead letters")
        for row in count_dead_letters(conn):
            table.add_row("dead letters", f"{row['count']} {row['category']} {row['error']}")
        table.add_row("faults", f"{len(schedule.landed)} landed, {schedule.kill_count} of them kills")
        counts = schedule.count_by_kind().most_common()
        table.add_row("", ", ".join(f"{count} {kind}" for kind, count in counts))
        table.add_row("repeated attempts", f"{verdict.repeated}, {len(verdict.unexplained)} unexplained")
        for name in ("lost", "doubled", "unexpected"):
            table.add_row(name, str(len(getattr(verdict, name))))
        table.add_row("orphans", f"{verdict.orphans} objects, for the next sweep")
        table.add_row("audit", "clean" if not audit_findings else f"{len(audit_findings)} findings")
        times = Table("fault", "count", "median s", "worst s", title="Time until work continued", title_justify="left")
        for kind, count, median, worst in self._recovery.recovery_times():
            times.add_row(kind, str(count), f"{median:.2f}", f"{worst:.2f}")
        self._console.print(table, times)
        findings = {name: getattr(verdict, name) for name in ("lost", "doubled", "unexpected", "unexplained")}
        for kind, messages in {**findings, "audit": audit_findings}.items():
            for message in messages[:20]:
                self._console.print(f"[red]{kind}[/red] {message}")
