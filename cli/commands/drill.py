"""`moorage drill`: everything is broken by a seeded schedule while work runs; exit 0 only when nothing is lost."""

import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from db.connection import connect
from embedded.proxy import Proxy
from embedded.stack import Stack
from moorage import settings as settings_module
from simulation.chaos import ledger as telling
from simulation.chaos import verdict as judging
from simulation.chaos.faults import World
from simulation.chaos.load import Application
from simulation.chaos.recovery import Recovery
from simulation.chaos.schedule import Chaos
from simulation.demo import registered
from simulation.provider.client import Standin
from simulation.stack import Local, data_folder
from tasks.audit import run
from worker import boot

LEASE_SECONDS: Final = 10.0
QUIET_SECONDS: Final = 300.0  # at least; a long drill may take a quarter of its time to work off what was held up
SETTINGS: Final = {
    "MOORAGE_LEASE_SECONDS": f"{LEASE_SECONDS:.0f}",  # so that a frozen worker is fenced within the drill's time
    "MOORAGE_POLL_FIRST_SECONDS": "15",
    "MOORAGE_WAIT_CAP_SECONDS": "20",
    "MOORAGE_MAX_CRASHES": "50",  # more crashes than in a year: poison is not what the drill is about
    "MOORAGE_MAX_ERRORS": "50",
}


@click.command()
@click.option("--jobs", default=1000, show_default=True, help="Of three files each; one in seven is ordered, of two.")
@click.option("--minutes", default=5.0, show_default=True, help="How long jobs arrive and things break.")
@click.option("--seed", type=int, help="Of the schedule of faults; drawn when not given.")
@click.option("--every", "every_seconds", default=2.5, show_default=True, help="Seconds between faults, on average.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=lambda: data_folder("drill"), show_default=".moorage/drill"
)
@click.option("--report", type=click.Path(path_type=Path), help="Also write the result as JSON to this file.")
def drill(jobs: int, minutes: float, seed: int | None, every_seconds: float, folder: Path, report: Path | None) -> None:
    """Break everything while work runs, then account for everything that was sent."""
    console = Console(highlight=False, soft_wrap=True)
    seed = secrets.randbelow(10**6) if seed is None else seed
    if folder.exists():
        shutil.rmtree(folder)
    console.print(f"drill: {jobs} jobs, {minutes:g} minutes, seed {seed}")
    console.print("settings that differ: " + ", ".join(f"{k}={v}" for k, v in SETTINGS.items()))
    with Standin().start(folder / "standin") as standin, Stack(folder / "local") as stack:
        proxies = {s.name: Proxy(s.port).start() for s in stack.servers}
        by_role = _by_role(stack, proxies)
        local = Local(
            folder / "local", stack=stack, standin=standin, keep_workers=2, concurrency=3, beats=2,
            overrides={**SETTINGS, **_through(stack, by_role)},
        )  # fmt: skip
        with local:
            result = _run(console, local, standin, by_role, jobs, minutes * 60, seed, every_seconds)
        for proxy in proxies.values():
            proxy.stop()
    if report is not None:
        report.write_text(json.dumps(result, indent=2) + "\n")
    if result["clean"]:
        shutil.rmtree(folder)
    else:
        console.print(f"data and logs are in {folder}")
    raise SystemExit(0 if result["clean"] else 1)


def _by_role(stack: Stack, proxies: dict[str, Proxy]) -> dict[str, Proxy]:
    return {
        "postgres": proxies[stack.postgres.name],
        "valkey": proxies[stack.valkey.name],
        "seaweedfs": proxies[stack.seaweedfs.name],
    }


def _through(stack: Stack, proxies: dict[str, Proxy]) -> dict[str, str]:
    """Return the settings with which our processes reach the servers through the proxies."""
    direct = stack.environment()
    ports = {
        "DATABASE_URL": (stack.postgres.port, proxies["postgres"].port),
        "CELERY_BROKER_URL": (stack.valkey.port, proxies["valkey"].port),
        "AWS_ENDPOINT_URL_S3": (stack.seaweedfs.port, proxies["seaweedfs"].port),
    }
    return {name: direct[name].replace(f":{there}", f":{here}") for name, (there, here) in ports.items()}


def _run(
    console: Console,
    local: Local,
    standin: Standin,
    proxies: dict[str, Proxy],
    jobs: int,
    seconds: float,
    seed: int,
    every_seconds: float,
) -> dict[str, Any]:
    os.environ.update({**local.environment(), **local.stack.environment()})
    settings_module.get.cache_clear()
    recovery = Recovery(local.stack.postgres.url())
    chaos = Chaos(World(local, standin, proxies, LEASE_SECONDS), recovery, seed=seed, every_seconds=every_seconds)
    application = Application(local, standin, jobs=jobs, seconds=seconds, seed=seed)
    application.start()
    begun = told = time.monotonic()
    while not application.is_done or time.monotonic() - begun < seconds:
        chaos.step(break_things=True)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            console.print(f"{told - begun:4.0f} s  jobs {application.jobs}  faults {len(chaos.landed)}")
        if application.error is not None:
            raise application.error
    console.print("no more faults; waiting for quiet ...")
    patience = max(QUIET_SECONDS, seconds / 4)
    is_quiet = _await_quiet(chaos, local, standin, application, until=time.monotonic() + patience)
    return _report(console, local, standin, chaos, recovery, application, seed=seed, is_quiet=is_quiet)


def _await_quiet(chaos: Chaos, local: Local, standin: Standin, application: Application, *, until: float) -> bool:
    """Return whether all jobs have ended in time; what is still made of an order may open one again."""
    while not chaos.is_healed:
        chaos.step(break_things=False)
    conn = connect(local.stack.postgres.url(), name="moorage-drill")
    is_told = is_quiet = False
    while not is_quiet and time.monotonic() < until:
        chaos.step(break_things=False)
        if registered.is_quiet(conn, application.jobs):
            is_told = is_told or telling.is_told(standin.get_ledger()["lines"], application.ordered)
            is_quiet = is_told and registered.is_quiet(conn, application.jobs)
    conn.close()
    return is_quiet


def _report(
    console: Console,
    local: Local,
    standin: Standin,
    chaos: Chaos,
    recovery: Recovery,
    application: Application,
    *,
    seed: int,
    is_quiet: bool,
) -> dict[str, Any]:
    conn = connect(local.stack.postgres.url(), name="moorage-drill")
    deps = boot.deps()
    verdict = judging.judge(
        conn, deps.blobs, standin.get_ledger(), application.started, application.ordered, chaos.landed
    )
    findings = [str(finding) for finding in run.run(deps, deep=True).findings]
    conn.close()
    if not is_quiet:
        verdict.unexpected.insert(0, "not everything ended in time after the last fault")
    verdict.unexpected += recovery.unrecovered
    recovery.close()
    _print(console, verdict, chaos, recovery, application, findings)
    console.print(
        f"seed {seed}: {'[green]clean[/green]' if verdict.is_clean and not findings else '[red]NOT clean[/red]'}"
    )
    return {
        "seed": seed,
        "clean": verdict.is_clean and not findings,
        "jobs": application.jobs,
        "files": verdict.files,
        "orders": verdict.orders.counts(),
        "acknowledged": verdict.acknowledged,
        "kept": verdict.kept,
        "faults": dict(chaos.counts()),
        "kills": chaos.kills,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "unexpected": verdict.unexpected,
        "unexplained": verdict.unexplained,
        "orphans": verdict.orphans,
        "audit": findings,
        "recovery": [{"fault": k, "count": n, "median_s": m, "worst_s": w} for k, n, m, w in recovery.table()],
    }


def _print(
    console: Console,
    verdict: judging.Verdict,
    chaos: Chaos,
    recovery: Recovery,
    application: Application,
    findings: list[str],
) -> None:
    table = Table(show_header=False, title="What was sent, and what became of it", title_justify="left")
    again = f"{application.refusals} requests were refused or cut and sent again"
    ordered = f"{len(application.ordered)} of them ordered"
    table.add_row("sent", f"{application.jobs} jobs, {ordered}, with {verdict.files} files; {again}")
    table.add_row("acknowledged", f"{application.jobs} jobs, {verdict.acknowledged} webhooks")
    table.add_row("orders", str(verdict.orders))
    table.add_row("kept", f"{verdict.kept} files; of {len(verdict.expired)} jobs some expired in a clock jump")
    for reason, count in verdict.dead:
        table.add_row("dead letters", f"{count} {reason}")
    table.add_row("faults", f"{len(chaos.landed)} landed, {chaos.kills} of them kills")
    table.add_row("", ", ".join(f"{count} {kind}" for kind, count in chaos.counts().most_common()))
    table.add_row("repeated attempts", f"{verdict.repeated}, {len(verdict.unexplained)} unexplained")
    for name in ("lost", "doubled", "unexpected"):
        table.add_row(name, str(len(getattr(verdict, name))))
    table.add_row("orphans", f"{verdict.orphans} objects, for the next sweep")
    table.add_row("audit", "clean" if not findings else f"{len(findings)} findings")
    console.print(table)
    times = Table(title="Until work went on", title_justify="left")
    for column in ("fault", "times", "median s", "worst s"):
        times.add_column(column)
    for kind, count, median, worst in recovery.table():
        times.add_row(kind, str(count), f"{median:.2f}", f"{worst:.2f}")
    console.print(times)
    for name in ("lost", "doubled", "unexpected", "unexplained"):
        for line in getattr(verdict, name)[:20]:
            console.print(f"[red]{name}[/red] {line}")
    for finding in findings[:20]:
        console.print(f"[red]audit[/red] {finding}")
