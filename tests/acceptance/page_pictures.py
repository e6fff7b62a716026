"""Take the screenshots in docs/page: `python -m tests.acceptance.page_pictures FOLDER [--pictures FOLDER]`."""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from embedded.standin.client import Standin
from tests.acceptance import browser as drive
from tests.acceptance.world import SETTINGS, Asked, World, until
from worker.local import Local

PROMPTS = (
    ("A lighthouse on a chalk cliff, early light", "oil on canvas", {"outputs": 4}),
    ("Loft with brick walls and a long oak table", "industrial", {"outputs": 2}),
    ("A fox crossing a frozen river", "woodcut", {"outputs": 1}),
    ("Bedroom in linen and ash, north light", "japandi", {"outputs": 3, "faults": {"2": "404_always"}}),
    ("Portrait of a clockmaker", "charcoal", {"outputs": 1, "faults": {"0": "corrupt"}}),
    ("A market street in the rain, seen from above", "film still", {"outputs": 2}),
)
FORMATS = ["jpeg", "png", "webp"]


def main() -> None:
    """Run the stack, make renders in every state, and photograph the page in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, help="pictures and videos that the stand-in serves")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Standin(pictures=given.pictures).start(Path(folder) / "s") as standin:
        overrides = {**SETTINGS, "MOORAGE_EGRESS_ALLOW": standin.address}
        with Local(Path(folder) / "l", standin=standin, overrides=overrides) as local, drive.chromium() as chromium:
            world = World(local, standin, Path(folder))
            _all(world, chromium, given.folder, has_own=given.pictures is not None)
            world.close()


def _all(world: World, chromium: Any, folder: Path, *, has_own: bool) -> None:
    with _opened(world, chromium, "empty") as page:
        page.get_by_text("Nothing here yet.").wait_for()
        _take(page, folder, "empty")
    with _opened(world, chromium, "working") as page:
        for prompt, style, _ in PROMPTS[:3]:
            world.ask({"status": "processing"}, owner="working", prompt=prompt, style=style)
        page.locator(".card").nth(2).wait_for()
        _take(page, folder, "working")
    _fill(world, "mixed", has_own=has_own)
    for name, options in (
        ("mixed", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": drive.PHONE, "device_scale_factor": 2}),
    ):
        with _opened(world, chromium, "mixed", **options) as page:
            _take(page, folder, name)
            if name == "mixed":
                page.locator(".card.kept a.picture").first.click()
                until(lambda: page.evaluate("document.querySelector('#stage img')?.complete"), "it is shown")
                _take(page, folder, "lightbox")
    with _opened(world, chromium, "failed") as page:
        for prompt, style, _ in PROMPTS[:2]:
            asked = world.ask({"faults": {"0": "corrupt"}}, owner="failed", prompt=prompt, style=style)
            world.await_end(asked)
        _ask_in_vain(world, "failed")
        page.locator(".card.failed").nth(2).wait_for()
        _take(page, folder, "failed")


def _fill(world: World, owner: str, *, has_own: bool) -> None:
    formats = {} if has_own else {"formats": FORMATS}
    asked: list[Asked] = []
    for number, (prompt, style, script) in enumerate(PROMPTS):
        wanted = {"seed": number, **formats, **script}
        asked.append(world.ask(wanted, owner=owner, prompt=prompt, style=style, project_id="autumn", scene=number))
    world.await_end(*asked)
    _ask_in_vain(world, owner, placeholder=True)
    world.ask({"status": "processing"}, owner=owner, prompt="A paper boat in a puddle", style="macro")


def _ask_in_vain(world: World, owner: str, *, placeholder: bool = False) -> None:
    """Ask for a job of which no provider makes anything."""
    entry = {"provider": "replicate", "model": "standin/failing", "input": {"prompt": "a greenhouse at night"}}
    wish = {"owner": owner, "kind": "image", "prompt": "A greenhouse at night", "style": "gouache", "chain": [entry]}
    answer = requests.post(
        f"{world.local.url}/v1/jobs", json={**wish, "placeholder": placeholder}, headers=world.token, timeout=10
    )
    assert answer.status_code == 202, answer.text
    done = "SELECT 1 FROM jobs WHERE id = %(id)s AND settled_at IS NOT NULL"
    until(lambda: world.rows(done, id=answer.json()["job_id"]), "the job ended")


def _opened(world: World, chromium: Any, owner: str, **options: Any) -> Any:
    token = drive.owner_token(world.local.url, world.token, owner)
    return drive.page_of(chromium, world.local.url, token, **options)


def _take(page: Any, folder: Path, name: str) -> None:
    until(
        lambda: page.evaluate(
            "[...document.images].every(i => i.complete || i.getBoundingClientRect().top > innerHeight)"
        ),
        "every picture is loaded",
    )
    page.wait_for_timeout(600)  # what arrives fades in
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(200, Image.Quantize.MEDIANCUT).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
