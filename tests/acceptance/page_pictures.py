"""Take the screenshots in docs/page: `python -m tests.acceptance.page_pictures FOLDER`."""

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from tests.acceptance import browser as drive
from tests.acceptance import landscapes
from tests.acceptance.test_failpoint_crashes import run
from tests.acceptance.world import SETTINGS, Asked, World, until
from tests.support import kinds
from tests.support.standin import Standin
from worker.local_deployment import LocalDeployment

# What was asked for, in which style, in which mood of `landscapes`, how many files, and what they suffer.
PROMPTS: tuple[tuple[str, str, str, int, dict[str, str]], ...] = (
    ("Ridges above a lake, the first light", "oil on canvas", "dawn", 4, {}),
    ("Dunes at noon, no wind", "film still", "dunes", 2, {}),
    ("A fjord in the fog", "watercolour", "fjord", 1, {}),
    ("Hills after the sun has gone", "gouache", "dusk", 3, {"2": "404_always"}),
    ("A clearing seen from above", "woodcut", "forest", 1, {"0": "corrupt"}),
    ("Mountains by moonlight, still water", "film still", "night", 2, {}),
)


def main() -> None:
    """Run the stack, make renders in every state, and photograph the page in each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    into: Path = parser.parse_args().folder
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        landscapes.draw_all(folder / "pictures")
        with Standin(pictures=folder / "pictures").start(folder / "s") as standin:
            overrides = {**SETTINGS, "MOORAGE_EGRESS_ALLOW": standin.address}
            with (
                LocalDeployment(folder / "l", standin=standin, overrides=overrides) as local,
                drive.chromium() as chromium,
            ):
                world = World(local, standin, folder)
                _all(world, chromium, into)
                world.close()


def _all(world: World, chromium: Any, folder: Path) -> None:
    with _opened(world, chromium, "empty") as page:
        page.get_by_text("Nothing here yet.").wait_for()
        _take(page, folder, "empty")
    _working(world, chromium, folder)
    _fill(world, "mixed")
    for name, options in (
        ("mixed", {}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": drive.PHONE, "device_scale_factor": 2}),
    ):
        with _opened(world, chromium, "mixed", **options) as page:
            _take(page, folder, name)
            if name == "mixed":
                page.locator(".card.kept a.picture:not([data-video])").first.click()
                _look(page, folder, "lightbox")
                page.keyboard.press("Escape")
                page.set_viewport_size({"width": 1280, "height": 1000})
                _open_details(page, folder)
            if name == "phone":
                page.locator(".card", has_text="fjord").locator("a.picture").click()
                _look(page, folder, "portrait")
    _show_files(world, chromium, folder)
    with _opened(world, chromium, "failed") as page:
        for prompt, style, *_ in PROMPTS[:2]:
            asked = world.ask({"faults": {"0": "corrupt"}}, owner="failed", prompt=prompt, style=style)
            world.await_end(asked)
        _ask_in_vain(world, "failed")
        page.locator(".card.failed").nth(2).wait_for()
        _take(page, folder, "failed")


def _look(page: Any, folder: Path, name: str) -> None:
    until(lambda: page.evaluate("document.querySelector('#stage img')?.complete"), "it is shown")
    _take(page, folder, name)


def _open_details(page: Any, folder: Path) -> None:
    card = page.locator(".card", has_text="Dunes")
    card.get_by_role("button", name="Mark as favourite").click()
    card.get_by_role("button", name="Remove from favourites").wait_for()
    card.locator(".about > summary").click()
    card.locator(".confirm > summary").click()
    card.locator(".danger").hover()
    _take(page, folder, "details")


def _show_files(world: World, chromium: Any, folder: Path) -> None:
    """Show one file of every kind that is neither an image nor a video, beside a video."""
    files = {**kinds.build_files(), **kinds.build_encoded_files()}
    with tempfile.TemporaryDirectory() as given:
        for name in files.keys() - {"json", "txt"}:  # kept only where a model's schema announces text
            kind = "sound" if name in ("wav", "mp3", "flac", "ogg", "m4a", "weba", "mka") else "model"
            (Path(given) / f"{kind}.{name}").write_bytes(files[name])
        for kind in ("model", "sound"):
            done = run(world, "keep", *map(str, sorted(Path(given).glob(f"{kind}.*"))), "--owner", "files")
            if done.returncode:
                raise RuntimeError(done.stdout + done.stderr)
    with _opened(world, chromium, "files") as page:
        page.locator("audio").nth(4).wait_for()
        _take(page, folder, "files")


def _working(world: World, chromium: Any, folder: Path) -> None:
    """One that waits, one of which two files of three are kept, one that has just been kept."""
    with _opened(world, chromium, "working") as page:
        _ask(world, "working", 0)
        page.locator(".card.kept").wait_for()
        _ask(world, "working", 3, faults={"2": "slow_forever"})
        page.get_by_text("Keeping 2 of 3").wait_for()
        world.ask({"status": "processing"}, owner="working", prompt="A paper boat in a puddle", style="macro")
        page.locator(".card.waiting").wait_for()
        _take(page, folder, "working")


def _ask(world: World, owner: str, number: int, **script: Any) -> Asked:
    prompt, style, mood, outputs, faults = PROMPTS[number]
    files = [f"{mood}-{seed}.jpg" for seed in range(4)]
    wanted = {"outputs": outputs, "formats": files, "faults": faults, **script}
    project_id = "autumn" if owner == "mixed" else "winter"
    return world.ask(wanted, owner=owner, prompt=prompt, style=style, project_id=project_id, scene=number)


def _fill(world: World, owner: str) -> None:
    """In their order: the newest come first on the page, and show what it is for."""
    fjord, clearing, hills, night, dunes, dawn = 2, 4, 3, 5, 1, 0
    world.await_end(_ask(world, owner, fjord), _ask(world, owner, clearing))
    _ask_in_vain(world, owner, placeholder=True)
    world.await_end(_ask(world, owner, hills))
    world.ask({"status": "processing"}, owner=owner, prompt="A paper boat in a puddle", style="macro")
    world.await_end(_ask(world, owner, night), _ask(world, owner, dunes))
    world.await_end(world.ask({"formats": ["mp4"]}, owner=owner, kind="video", prompt="The harbour wakes up"))
    world.await_end(_ask(world, owner, dawn))


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
    token = drive.owner_token(world.local.url, world.token, owner, "delete")
    return drive.page_of(chromium, world.local.url, token, **options)


def _take(page: Any, folder: Path, name: str) -> None:
    until(
        lambda: page.evaluate(
            "[...document.images].every(i => i.complete || i.getBoundingClientRect().top > innerHeight)"
        ),
        "every picture is loaded",
    )
    page.wait_for_timeout(600)  # what arrives fades in
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    # 6 bits of each colour: below 200 kB; a palette would make steps.
    picture.point([round(value * 63 / 255) * 255 // 63 for value in range(256)] * 3).save(
        folder / f"{name}.png", optimize=True
    )


if __name__ == "__main__":
    main()
