"""Take the screenshot in docs/flower.png: `python -m tests.acceptance.flower_picture FILE`."""

import argparse
import tempfile
import time
from pathlib import Path

from celery import Celery
from rich.console import Console

from cli.commands import demo
from db.connection import connect
from simulation.demo import cases
from simulation.demo.application import Application
from simulation.demo.webhook_listener import WebhookListener
from tests.acceptance import browser as drive
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment


def main() -> None:
    """Run the cases of `moorage demo` while Flower listens, and photograph its list of tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    file: Path = parser.parse_args().file
    with (
        tempfile.TemporaryDirectory() as name,
        WebhookListener() as listener,
        Standin().start(Path(name) / "standin") as standin,
    ):
        overrides = {name: value for name, (value, _) in cases.SETTINGS.items()} | listener.environment()
        with (
            LocalDeployment(Path(name) / "demo", standin=standin, flower=True, overrides=overrides) as local,
            drive.chromium() as chromium,
        ):
            with Celery(broker=local.environment()["CELERY_BROKER_URL"], set_as_current=False) as app:
                app.control.enable_events(reply=True, timeout=5)
            conn = connect(local.environment()["DATABASE_URL"], name="picture")
            demo._run_cases(Console(), conn, Application(local, standin))
            conn.close()
            user = {"username": "moorage", "password": local.secrets["flower_password"]}
            context = chromium.new_context(viewport={"width": 1600, "height": 900}, http_credentials=user)
            page = context.new_page()
            time.sleep(2)  # its list is not refreshed by itself
            page.goto(f"{local.flower_url}/tasks")
            page.locator("tbody tr td").nth(20).wait_for()
            page.locator("th[data-column=state]").first.click()  # FAILURE, RETRY, SUCCESS
            page.wait_for_load_state("networkidle")
            page.screenshot(path=file)


if __name__ == "__main__":
    main()
