"""Every `sh` block of README, tutorial and how-tos, run as it stands, one shell for each page."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from tests.support import pages

pytestmark = pytest.mark.prove

PAGES: Final = [pages.ROOT / "README.md", pages.ROOT / "docs/tutorial.md", *sorted(pages.HOW_TO.glob("*.md"))]
# By the beginning of a block: why it is not run. At most five.
NOT_RUN: Final[Mapping[str, str]] = {
    "make demo": "`make demo` and `make test` are what continuous integration runs",
    "cp .env.example .env": "Docker",
    "docker compose run": "Docker",
    "moorage migrate\n": "processes that run until they are stopped; the acceptance tests run each of them",
    "aws s3api": "a command line of AWS",
}
UP: Final = re.compile(r"make up\b.*\n")  # runs until it is stopped: started before the others, from the same block
EXAMPLES: Final = [(page, block.text) for page in PAGES for block in pages.read_blocks(page, "sh")]


def find_reason(text: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if text.startswith(start)), None)


def test_at_most_five_blocks_are_not_run() -> None:
    assert sum(find_reason(text) is not None for _, text in EXAMPLES) <= 5
    assert all(any(text.startswith(start) for _, text in EXAMPLES) for start in NOT_RUN)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like a fresh clone, with pictures: links to the files of this one, but its data."""
    folder = tmp_path_factory.mktemp("clone")
    for path in pages.ROOT.iterdir():
        if path.name not in (".moorage", ".env", "my-pictures"):
            (folder / path.name).symlink_to(path)
    (folder / ".env.copy").write_bytes((pages.ROOT / ".env.example").read_bytes())
    (folder / "my-pictures").mkdir()
    Image.new("RGB", (64, 48), "teal").save(folder / "my-pictures" / "teal.png")
    return folder


@pytest.fixture(scope="module")
def environment(checkout: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `moorage`, as in an installation
    return {**kept, "PATH": path}


@pytest.fixture(scope="module")
def up(checkout: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run the block `make up` of the README."""
    log = checkout / "up.log"
    (block,) = [text for page, text in EXAMPLES if page.name == "README.md" and UP.fullmatch(text)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            ["bash", "-ec", f"exec {block}"], cwd=checkout, env=environment, stdout=sink, stderr=sink,
            start_new_session=True,
        )  # fmt: skip
        try:
            end = time.monotonic() + 180
            while b"/#token=" not in log.read_bytes():
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < end, log.read_text(encoding="utf-8")
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(120)


@pytest.mark.usefixtures("up")
@pytest.mark.parametrize("page", [page for page in PAGES if pages.read_blocks(page, "sh")], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_stand(checkout: Path, environment: dict[str, str], page: Path) -> None:
    """In the order of the page (README and tutorial first: a how-to needs what they leave behind)."""
    texts = [text for of, text in EXAMPLES if of == page and find_reason(text) is None and not UP.fullmatch(text)]
    if page.name == "deploy-with-compose.md":
        (checkout / ".env").write_bytes((checkout / ".env.copy").read_bytes())

    script = "set -eo pipefail\n" + "\n".join(texts)
    ran = subprocess.run(["bash", "-c", script], cwd=checkout, env=environment, capture_output=True, text=True)

    (checkout / ".env").unlink(missing_ok=True)
    assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
    assert '"urn:moorage:problem' not in ran.stdout, ran.stdout  # curl does not fail for a refused request
