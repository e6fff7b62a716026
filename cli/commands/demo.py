"""`moorage demo`: a drill without faults of our servers; exits 0 only when all sources agree."""

import os
import shutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from cli.console import Progress
from db.connection import Connection, connect
from embedded.folders import occupy
from moorage import settings as settings_module
from simulation.demo import cases, event_stream, report, webhook_listener
from simulation.demo.application import Application
from simulation.demo.event_stream import StreamFollower
from simulation.demo.webhook_listener import WebhookListener
from simulation.ledger_check import check_ledger
from simulation.progress import is_quiet, read_progress
from simulation.provider.client import Standin
from tasks.audit import run
from worker import boot
from worker.local_deployment import LocalDeployment, data_folder

SETTLE_SECONDS = 100.0
STREAM_SECONDS = 10.0


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=lambda: data_folder("demo"), show_default=".moorage/demo"
)
@click.option(
    "--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Image folder for the stand-in."
)
@click.option("--leave", is_flag=True, help="Keep data and logs in the folder.")
def demo(folder: Path, pictures: Path | None, leave: bool) -> None:
    """Run the main scenarios on embedded servers and verify the results."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    click.get_current_context().with_resource(occupy(folder, clears=True))
    started = time.monotonic()
    with WebhookListener() as listener, Standin(pictures=pictures).start(folder / "standin") as standin:
        overrides = {name: value for name, (value, _) in cases.SETTINGS.items()} | listener.environment()
        console.print("starting PostgreSQL, Valkey, SeaweedFS, receiver, workers, beat, the provider stand-in ...")
        with LocalDeployment(folder, standin=standin, overrides=overrides) as local:
            console.print(f"all up after {time.monotonic() - started:.1f} s. Settings that differ from the defaults:")
            for name, (value, reason) in cases.SETTINGS.items():
                console.print(f"  {name}={value}  {reason}")
            agrees = _run(console, local, standin, listener)
    console.print(f"done in {time.monotonic() - started:.0f} s")
    if agrees and not leave:
        shutil.rmtree(folder)
    elif not agrees:
        console.print(f"data and logs are in {folder}")
    sys.exit(0 if agrees else 1)


def _run(console: Console, local: LocalDeployment, standin: Standin, listener: WebhookListener) -> bool:
    os.environ.update(local.environment())
    settings_module.get_settings.cache_clear()
    conn = connect(settings_module.get_settings().database_url.get_secret_value(), name="moorage-demo")
    application = Application(local, standin)
    with StreamFollower(local.url, local.secrets["api_token"]) as follower:
        is_settled = _run_cases(conn, application)
        newest = event_stream.newest_event_id(conn)
        follower.await_event(newest, STREAM_SECONDS)
    deps, ledger, project = boot.get_deps(), standin.get_ledger(), application.get_project()
    audit_findings = run.run_audit(deps).findings
    verdict = check_ledger(conn, deps.storage, ledger, application.runs)
    if not is_settled:
        verdict.unexpected.insert(0, f"not all work ended within {SETTLE_SECONDS:.0f} s")
    verdict.unexpected += report.check_project(project, application.requested)
    verdict.unexpected += webhook_listener.check_notifications(conn, listener)
    verdict.unexpected += event_stream.check_stream(conn, follower, newest)
    report.print_job_requests(console, application.requested, project)
    report.print_notifications(console, listener, follower)
    report.print_totals(console, conn, ledger["summary"], application, audit_findings)
    conn.close()
    for kind, message in [*(("audit", str(finding)) for finding in audit_findings), *verdict.findings]:
        console.print(f"[red]{kind}[/red] {message}")
    if verdict.is_clean and not audit_findings:
        console.print(
            "[green]The stand-in's ledger, PostgreSQL, the bucket, the webhooks to the application and the event stream"
            " agree; every job is accounted for.[/green]"
        )
    return verdict.is_clean and not audit_findings


def _run_cases(conn: Connection, application: Application) -> bool:
    application.create_project()
    application.request_jobs(cases.job_requests())
    application.start_predictions(cases.registered_cases())
    application.act()
    application.request_jobs(cases.follow_up_requests())
    jobs = sum(1 for case_run in application.runs if case_run.job_ids)
    is_settled, until = False, time.monotonic() + SETTLE_SECONDS
    with Progress("waiting for the jobs") as shown:
        while not is_settled and time.monotonic() < until:
            progress = read_progress(conn)
            shown.update(_format_progress(progress))
            is_settled = is_quiet(progress, jobs) and application.update_views()
            time.sleep(0.25)
    application.update_views()
    return is_settled


def _format_progress(progress: dict[str, int]) -> str:
    settled = progress["jobs_all"] - progress["jobs"]
    return (
        f"webhooks {progress['accepted']}  jobs {settled}/{progress['jobs_all']}  kept {progress['kept']}"
        f"  waiting {progress['waiting']}  dead {progress['dead']}  dead letters {progress['dead_letters']}"
    )
