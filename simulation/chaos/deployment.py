"""Starts what a form of the drill needs: servers behind proxies or a standby, a small disk, moorage's processes."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg

from embedded import small_disk
from embedded.postgres import Postgres
from embedded.proxy import Proxy
from embedded.stack import Stack
from embedded.standby import Standby
from moorage import settings as settings_module
from simulation.chaos.forms import LEASE_SECONDS, DrillForm
from simulation.chaos.targets import Targets
from simulation.provider.client import Standin
from worker.local_deployment import LocalDeployment

SMALL_DISK_MB: Final = 96


@contextlib.contextmanager
def deploy(form: DrillForm, folder: Path) -> Iterator[Targets]:
    """Run everything in a folder; this process gets the settings to judge it, past the proxies."""
    with contextlib.ExitStack() as ends:
        disk = small_disk.mount_small_disk(SMALL_DISK_MB) if form.small_disk else None
        if disk:
            ends.callback(small_disk.unmount, disk)
        standin = ends.enter_context(Standin().start(folder / "standin"))
        stack = ends.enter_context(Stack(folder / "local"))
        proxies = {server.name: Proxy(server.port).start() for server in stack.servers}
        for proxy in proxies.values():
            ends.callback(proxy.stop)
        overrides, direct = {**form.environment, **_proxy_settings(stack, proxies)}, stack.environment()
        overrides["S3_PUBLIC_ENDPOINT_URL"] = direct["AWS_ENDPOINT_URL_S3"]  # in documents, which the audit reads
        standby = None
        if form.has_standby:
            standby = Standby(stack.postgres, folder / "standby")
            standby.follow()
            ends.callback(standby.stop)
            overrides["DATABASE_URL"] = direct["DATABASE_URL"] = standby.both_url()
        if disk and form.small_disk == "temporary files":
            overrides["TMPDIR"] = str(disk)
        elif disk:
            _move_tables(stack.postgres, small_disk.create_tablespace_folder(disk))
        local = LocalDeployment(
            folder / "local", stack=stack, standin=standin, keep_workers=2, concurrency=3, beats=2, overrides=overrides
        )
        ends.enter_context(local)
        os.environ.update({**local.environment(), **direct, "TMPDIR": tempfile.gettempdir()})
        settings_module.get_settings.cache_clear()
        url = direct["DATABASE_URL"]
        yield Targets(local, standin, proxies, LEASE_SECONDS, url, standby, disk)


def _move_tables(postgres: Postgres, folder: Path) -> None:
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as conn:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{folder}'".encode())
        conn.execute("ALTER DATABASE moorage SET TABLESPACE small")


def _proxy_settings(stack: Stack, proxies: dict[str, Proxy]) -> dict[str, str]:
    direct = stack.environment()
    ports = {
        "DATABASE_URL": (stack.postgres.port, proxies["postgres"].port),
        "CELERY_BROKER_URL": (stack.valkey.port, proxies["valkey"].port),
        "AWS_ENDPOINT_URL_S3": (stack.seaweedfs.port, proxies["seaweedfs"].port),
    }
    return {name: direct[name].replace(f":{port}", f":{proxy_port}") for name, (port, proxy_port) in ports.items()}
