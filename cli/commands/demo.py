"""`moorage demo`: the main job, with a share of each fault, on real servers; exit 0 only when all sources agree."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from db.connection import Connection, connect
from moorage import settings as settings_module
from simulation.demo import (
    compare,
    event_stream,
    project_check,
    registered,
    registered_cases,
    report,
    submitted_cases,
    webhook_listener,
)
from simulation.demo.api_client import Shop
from simulation.demo.event_stream import Follower
from simulation.demo.webhook_listener import Listener
from simulation.provider.client import Standin
from simulation.stack import Local, data_folder
from tasks.audit import run
from worker import boot

SETTLE_SECONDS = 100.0
STREAM_SECONDS = 10.0


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=lambda: data_folder("demo"), show_default=".moorage/demo"
)
@click.option("--pictures", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Serve these files.")
@click.option("--leave", is_flag=True, help="Leave data and logs in the folder.")
def demo(folder: Path, pictures: Path | None, leave: bool) -> None:
    """Run the main job on embedded servers and compare what was sent with what was kept."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    if folder.exists():
        shutil.rmtree(folder)
    begun = time.monotonic()
    with Listener() as listener, Standin(pictures=pictures).start(folder / "standin") as standin:
        overrides = {name: value for name, (value, _) in registered_cases.SETTINGS.items()} | listener.environment()
        console.print("starting PostgreSQL, Valkey, SeaweedFS, receiver, workers, beat, a stand-in for providers ...")
        with Local(folder, standin=standin, overrides=overrides) as local:
            console.print(f"all up after {time.monotonic() - begun:.1f} s. Settings that differ from the defaults:")
            for name, (value, why) in registered_cases.SETTINGS.items():
                console.print(f"  {name}={value}  {why}")
            agreed = _run(console, local, standin, listener)
    console.print(f"done in {time.monotonic() - begun:.0f} s")
    if agreed and not leave:
        shutil.rmtree(folder)
    elif not agreed:
        console.print(f"data and logs are in {folder}")
    sys.exit(0 if agreed else 1)


def _run(console: Console, local: Local, standin: Standin, listener: Listener) -> bool:
    """Run every case to its end and print the comparison; returns whether the sources agree."""
    os.environ.update(local.environment())
    settings_module.get.cache_clear()
    conn = connect(settings_module.get().database_url.get_secret_value(), name="moorage-demo")
    shop = Shop(local)
    with Follower(local.url, local.secrets["api_token"]) as follower:
        started, is_quiet = _drive(console, conn, shop, registered.Application(local, standin))
        newest = event_stream.last(conn)
        follower.await_event(newest, STREAM_SECONDS)
    deps, ledger, project = boot.deps(), standin.get_ledger(), shop.film()
    findings = [f"[red]audit[/red] {finding}" for finding in run.run(deps).findings]
    differing = [] if is_quiet else [f"not everything ended within {SETTLE_SECONDS:.0f} s"]
    differing += compare.differences(conn, deps.blobs, ledger, started, shop.placed)
    differing += project_check.differences(project, shop.placed)
    differing += webhook_listener.differences(conn, listener)
    differing += event_stream.differences(conn, follower, newest)
    report.show_orders(console, shop.placed, project)
    report.show_told(console, listener, follower)
    report.show(console, conn, ledger["summary"], started, findings)
    conn.close()
    return _conclude(console, [*findings, *(f"[red]differs[/red] {line}" for line in differing)])


def _drive(
    console: Console, conn: Connection, shop: Shop, application: registered.Application
) -> tuple[list[registered.Started], bool]:
    """Start, order, cancel and retry; returns what was started, and whether all of it came to its end."""
    shop.write_film()
    shop.place(submitted_cases.first())
    started = application.start(registered_cases.cases())
    shop.steer()
    shop.place(submitted_cases.then())
    jobs = len(shop.placed) + sum(1 for one in started if one.job_id is not None)
    with Status("", console=console) as status:
        is_quiet = registered.await_quiet(conn, jobs, Teller(console, status), shop.look, SETTLE_SECONDS)
    shop.look()
    return started, is_quiet


def _conclude(console: Console, problems: Sequence[str]) -> bool:
    for problem in problems:
        console.print(problem)
    if not problems:
        console.print(
            "[green]The stand-in's ledger, PostgreSQL, the bucket, the webhooks out and the stream of events agree;"
            " every job is accounted for.[/green]"
        )
    return not problems


class Teller:
    """Shows progress: in place on a terminal, a line every few seconds elsewhere."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self._last = 0.0

    def __call__(self, now: dict[str, int]) -> None:
        """Show the counts."""
        line = (
            f"webhooks {now['accepted']}  jobs {now['jobs_all'] - now['jobs']}/{now['jobs_all']}  kept {now['kept']}"
            f"  waiting {now['waiting']}  dead {now['dead']}  dead letters {now['dead_letters']}"
        )
        if self._console.is_terminal:
            self._status.update(line)
        elif time.monotonic() - self._last > 3:
            self._console.print(line)
            self._last = time.monotonic()
