"""The main job, from a signed webhook to kept files and published rows, through the real processes."""

import io

import pytest
from PIL import Image

from tests.acceptance.world import until

SCRIPTS = {
    "list": {"outputs": 6, "formats": ["png", "jpeg", "jpeg_rotated", "webp", "avif", "gif"]},
    "string": {"shape": "string", "formats": ["jpeg"]},
    "nested": {"shape": "nested", "outputs": 3, "formats": ["webp", "png"]},
    "data": {"shape": "data", "outputs": 2, "formats": ["png", "jpeg"]},
    "early": {"duration_s": 0.0, "outputs": 2},
    "silent": {"webhook": "missing", "outputs": 2},
}


@pytest.fixture
def documented(world):
    """A project with three scenes: two named, one by its place."""
    world.rows(
        """INSERT INTO projects (id, owner, document) VALUES
           ('p1', 'o1', '{"scenes": [{"id": "a"}, {"index": 7}, {"title": "third"}], "title": "kept"}')
           RETURNING id"""
    )
    return "p1"


def test_every_shape_and_format_is_kept_and_published(world, documented):
    """What the product is for: files with rows, objects, thumbnails and a place in the application's document."""
    scenes = {"list": "a", "nested": 7, "data": 1, "string": "nowhere"}

    asked = {
        name: world.ask(script, project_id=documented, scene=scenes[name]) if name in scenes else world.ask(script)
        for name, script in SCRIPTS.items()
    }
    world.await_end(*asked.values())

    for one in asked.values():
        assert world.job(one)["state"] == "succeeded"
        world.check(one)
    assert {len(world.outputs(asked[name])) for name in ("early", "silent", "data")} == {2}
    assert images_of(world, documented) == [urls(world, asked[n]) for n in ("list", "nested", "data")]
    unplaced = world.rows(
        "SELECT render_id FROM placements WHERE scene_key IS NULL AND project_id = %(id)s", id=documented
    )
    assert [row["render_id"] for row in unplaced] == [asked["string"].job_id]


def images_of(world, project_id):
    document = world.one("SELECT document FROM projects WHERE id = %(id)s", id=project_id)["document"]
    assert document["title"] == "kept"
    return [scene["imageUrls"] for scene in document["scenes"]]


def urls(world, asked):
    return [world.blobs.build_asset_url(row["key"]) for row in world.outputs(asked)]


def test_anyone_can_read_the_file_and_its_upright_thumbnail(world):
    """The address in the document is what a browser opens: the provider's bytes, and a small picture of them."""
    asked = world.ask({"formats": ["jpeg_rotated"]})
    world.await_end(asked)

    (row,) = world.outputs(asked)
    original, thumbnail = world.get(row["key"]), world.get(row["thumb_key"])

    assert (original.status_code, original.headers["Content-Type"]) == (200, "image/jpeg")
    assert len(original.content) == row["bytes"]
    picture = Image.open(io.BytesIO(thumbnail.content))
    assert picture.format == "WEBP"
    assert max(picture.size) <= 400
    assert (picture.width > picture.height) == (row["width_px"] > row["height_px"])


def test_a_delivery_that_comes_before_its_registration_is_matched(world):
    """A fast model answers before the application has written its own row."""
    made = world.standin.create_prediction({"standin": {"duration_s": 0.0, "formats": ["png"]}}, world.hook)
    waiting = "SELECT id FROM deliveries WHERE external_id = %(id)s AND state = 'unmatched'"
    until(lambda: world.rows(waiting, id=made["id"]), "an unmatched delivery")

    asked = world.register(made["id"])
    world.await_end(asked)

    assert world.job(asked)["state"] == "succeeded"
    world.check(asked)
