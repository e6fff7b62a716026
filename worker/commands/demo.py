"""`moorage demo`: the main job, with a share of each fault, on real servers; exit 0 only when three sources agree."""

import os
import shutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from db.connect import connect
from embedded.standin.client import Standin
from moorage import settings as settings_module
from tasks import audit
from worker import boot
from worker.demo import compare, drive, film, orders, plan, report
from worker.demo.shop import Shop
from worker.local import Local, data_folder

SETTLE_SECONDS = 100.0


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
    with Standin(pictures=pictures).start(folder / "standin") as standin:
        overrides = {name: value for name, (value, _) in plan.SETTINGS.items()}
        console.print("starting PostgreSQL, Valkey, SeaweedFS, receiver, workers, beat, a stand-in for providers ...")
        with Local(folder, standin=standin, overrides=overrides) as local:
            console.print(f"all up after {time.monotonic() - begun:.1f} s. Settings that differ from the defaults:")
            for name, (value, why) in plan.SETTINGS.items():
                console.print(f"  {name}={value}  {why}")
            agreed = _run(console, local, standin)
    console.print(f"done in {time.monotonic() - begun:.0f} s")
    if agreed and not leave:
        shutil.rmtree(folder)
    elif not agreed:
        console.print(f"data and logs are in {folder}")
    sys.exit(0 if agreed else 1)


def _run(console: Console, local: Local, standin: Standin) -> bool:
    """Run every case to its end and print the comparison; returns whether the sources agree."""
    os.environ.update(local.environment())
    settings_module.get.cache_clear()
    conn = connect(settings_module.get().database_url.get_secret_value(), name="moorage-demo")
    shop = Shop(local)
    shop.write_film()
    shop.place(orders.first())
    started = drive.Application(local, standin).start(plan.cases())
    shop.place(orders.then())
    jobs = len(shop.placed) + sum(1 for one in started if one.job_id is not None)
    with Status("", console=console) as status:
        is_quiet = drive.await_quiet(conn, jobs, Teller(console, status), shop.look, SETTLE_SECONDS)
    shop.look()
    deps = boot.deps()
    findings = audit.run(deps).findings
    ledger = standin.ledger()
    differing = compare.differences(conn, deps.blobs, ledger, started, shop.placed)
    project = shop.film()
    differing += film.differences(project, shop.placed)
    if not is_quiet:
        differing.insert(0, f"not everything ended within {SETTLE_SECONDS:.0f} s")
    report.show_orders(console, shop.placed, project)
    report.show(console, conn, ledger["summary"], started, findings)
    for finding in findings:
        console.print(f"[red]audit[/red] {finding}")
    for line in differing:
        console.print(f"[red]differs[/red] {line}")
    if not differing and not findings:
        console.print(
            "[green]The stand-in's ledger, PostgreSQL and the bucket agree; every job is accounted for.[/green]"
        )
    conn.close()
    return not differing and not findings


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
