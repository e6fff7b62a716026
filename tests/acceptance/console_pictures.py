"""Take the screenshots in docs/console: `python -m tests.acceptance.console_pictures FOLDER`."""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.acceptance import browser as drive
from tests.acceptance.world import SETTINGS, World, until
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment


def main() -> None:
    """Run the stack, break something, and photograph the console."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    into: Path = parser.parse_args().folder
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, Standin().start(Path(name) / "s") as standin:
        overrides = {**SETTINGS, "MOORAGE_EGRESS_ALLOW": standin.address}
        with (
            LocalDeployment(Path(name) / "l", standin=standin, overrides=overrides) as local,
            drive.chromium() as chromium,
        ):
            world = World(local, standin, Path(name))
            _all(world, chromium, into)
            world.close()


def _all(world: World, chromium: Any, folder: Path) -> None:
    asked = [world.ask({"outputs": 3}, owner=owner, prompt="a boat") for owner in ("ada", "bob", "ada")]
    world.await_end(*asked)
    with _opened(world, chromium) as page:
        page.get_by_role("heading", name="All clear").wait_for()
        _take(page, folder, "clear")
    broken = [world.ask({"faults": {"0": fault}}, owner="bob") for fault in ["corrupt"] * 5 + ["404_always"] * 3]
    world.await_end(*broken)
    slow = world.ask({"outputs": 2, "faults": {"1": "slow_forever"}}, owner="ada")
    world.await_leased(slow)
    with _opened(world, chromium) as page:
        _visit(page, folder, "Pauses", "pauses", lambda: _pause(page))
        _visit(page, folder, "Dead letters", "dead-letters")
        page.get_by_role("link", name="VALIDATION_FAILED").first.click()
        page.get_by_role("button", name="Replay all").click()
        page.get_by_text("within 10 min").wait_for()
        _take(page, folder, "plan")
        for name in ("Workers", "Sweeps", "Outputs"):
            _visit(page, folder, name, name.lower())
        page.goto(f"{world.local.url}/ops/show/{broken[0].job_id}")
        _take(page, folder, "record")
    for name, options in (
        ("overview", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": drive.PHONE, "device_scale_factor": 2}),
    ):
        with _opened(world, chromium, **options) as page:
            page.locator(".verdict li").nth(1).wait_for()
            _take(page, folder, name)


def _opened(world: World, chromium: Any, **options: Any) -> Any:
    return drive.console_of(chromium, world.local.url, world.local.secrets["api_token"], **options)


def _pause(page: Any) -> None:
    page.get_by_label("Target").select_option("fal")
    page.get_by_label("Reason").fill("their incident 4711")
    page.get_by_role("button", name="Pause", exact=True).click()
    page.locator(".banner").wait_for()


def _visit(page: Any, folder: Path, link: str, name: str, act: Any = None) -> None:
    page.get_by_role("navigation", name="Console").get_by_role("link", name=link).click()
    until(lambda: page.locator("[aria-current=page]").inner_text() == link, f"{link} is shown")
    if act:
        act()
    _take(page, folder, name)


def _take(page: Any, folder: Path, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
