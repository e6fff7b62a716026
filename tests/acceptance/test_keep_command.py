"""`moorage keep`: files, folders and URLs that a person names, through the same workers."""

import json

import pytest
import requests

from simulation.provider import pictures
from tests.acceptance.test_failpoint_crashes import run
from tests.acceptance.world import until
from tests.support import kinds

KINDS = (*pictures.FORMATS, *pictures.VIDEO_FORMATS)


@pytest.fixture
def working(world):
    """Give the running system once its workers have kept something: they may just have been started."""
    world.await_end(world.ask())
    return world


def test_a_folder_a_file_and_a_url_are_kept_byte_for_byte(working, tmp_path):
    """Whoever tries moorage first tries it with pictures of their own; what they lent is not left lying about."""
    folder, alone = tmp_path / "pictures", tmp_path / "alone.png"
    folder.mkdir()
    lent = {folder / f"{n}.{pictures.extension(kind)}": pictures.generate(kind, n).data for n, kind in enumerate(KINDS)}
    others = {**kinds.build_files(), **kinds.build_encoded_files()}
    lent |= {folder / f"other.{name}": data for name, data in sorted(others.items())}
    lent[alone] = pictures.generate("png", 99).data
    for path, data in lent.items():
        path.write_bytes(data)
    (folder / "notes.html").write_text("<p>no picture")
    url = served(working)

    done = run(working, "keep", str(folder), str(alone), url, "--json")

    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)["files"]
    assert [one["source"] for one in kept] == [*(str(path) for path in lent), url]
    assert "notes.html is of no known format" in done.stderr
    for one, data in zip(kept, [*lent.values(), requests.get(url, timeout=30).content], strict=True):
        assert requests.get(one["url"], timeout=30).content == data
    inputs = "the copies of local files are deleted"
    until(lambda: list(working.blobs.list_objects(working.blobs.private_bucket, "inputs/")) == [], inputs)


def test_what_cannot_be_kept_is_told_and_the_rest_is_kept(working, tmp_path):
    """One bad file of a hundred must not hide the others, nor look like success."""
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(pictures.generate("png", 7).data)
    bad.write_bytes(good.read_bytes()[:2000])

    done = run(working, "keep", str(good), str(bad))

    assert done.returncode == 1
    assert f"kept   {good}" in done.stdout
    assert f"dead   {bad}" in done.stdout
    assert "1 of 2 kept as render" in done.stdout


def served(world):
    """Return the address of a file that nobody registers."""
    made = world.standin.create_prediction(
        {"standin": {"duration_s": 0.0, "webhook": "missing", "formats": ["webp"]}}, world.hook
    )
    (url,) = until(lambda: world.standin.get_prediction(made["id"])["output"], "the stand-in's file")
    return url
