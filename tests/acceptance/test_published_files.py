"""Published files over HTTP: their addresses that stay, the scenes they stand in, and their end."""

import hashlib
import uuid

import pytest
import requests

from tests.acceptance.api_caller import application, entry, owner
from tests.acceptance.world import until

HERE = {"Origin": "https://app.example"}  # a page of another origin asks


def asset(world, render_id, name, **headers):
    """Return what anybody is answered for a file: no token is sent, and a redirect is followed."""
    url = f"{world.local.url}/v1/assets/renders/{render_id}/{name}"
    return requests.get(url, headers={**HERE, **headers}, timeout=30)


def test_a_published_file_answers_under_its_addresses_to_everybody(world):
    """Applications write these addresses down; caches may keep what is behind them for ever."""
    shop = application(world)
    job = shop.await_end(shop.order(entry(outputs=2)))
    first, render_id = job["variants"][0], job["render_id"]

    whole, bare, thumbnail = (asset(world, render_id, name) for name in ("0.png", "0", "0_thumb.webp"))
    part = asset(world, render_id, "0.png", Range="bytes=2-5")
    known = asset(world, render_id, "0.png", **{"If-None-Match": whole.headers["ETag"]})

    assert [step.status_code for step in whole.history] == [302]
    assert hashlib.sha256(whole.content).hexdigest() == first["sha256"]
    assert bare.content == whole.content
    assert whole.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert thumbnail.headers["Cache-Control"] == "public, max-age=86400"
    assert (whole.headers["Content-Type"], thumbnail.headers["Content-Type"]) == ("image/png", "image/webp")
    assert whole.history[0].headers["Access-Control-Allow-Origin"] == "*"
    assert whole.headers["Access-Control-Allow-Origin"] in ("*", HERE["Origin"])
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    assert (known.status_code, known.content) == (304, b"")


@pytest.mark.parametrize("name", ["2.png", "0.jpg", "00.png", "0_thumb.png", "..%2f..%2finputs", "0.png%00", "-1"])
def test_nothing_but_what_is_published_is_found(world, published, name):
    """These addresses are open: whatever else is tried meets the same answer."""
    answer = asset(world, published, name)

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.fixture(scope="module")
def published(shared_world):
    """Return a render of one file, made once."""
    shop = application(shared_world)
    return shop.await_end(shop.order(entry()))["render_id"]


def test_an_upload_is_seen_by_a_signed_address_alone(world, published):
    """A photograph of somebody's home is nobody else's, whatever is known of its name."""
    ada = owner(world)
    upload = ada.ask("POST", "/uploads", data=asset(world, published, "0").content).json()
    signed = requests.get(upload["url"], timeout=30)
    bare = requests.get(upload["url"].split("?")[0], timeout=30)

    assert (signed.status_code, hashlib.sha256(signed.content).hexdigest()) == (200, upload["sha256"])
    assert bare.status_code == 403
    assert asset(world, upload["upload_id"], "0").status_code == 404
    assert upload["url_seconds"] == 300


def test_a_deleted_render_is_gone_from_lists_addresses_and_storage(world):
    """Its owner means now, and everywhere."""
    ada = owner(world)
    job = ada.await_end(ada.order(entry()))
    url, render_id = job["variants"][0]["url"], job["render_id"]

    assert ada.ask("DELETE", f"/renders/{render_id}").status_code == 204

    assert ada.get("/renders")["renders"] == []
    assert asset(world, render_id, "0").status_code == 404
    assert ada.ask("GET", f"/renders/{render_id}").status_code == 404
    until(lambda: requests.get(url, timeout=30).status_code in (403, 404), "the object is deleted")
    assert ada.ask("DELETE", f"/renders/{render_id}").status_code == 204


def test_files_follow_their_scenes_as_these_come_go_and_change_places(world):
    """A scene may be written after its picture: nothing is lost meanwhile, nothing stands twice."""
    ada, project = owner(world), f"/projects/p-{uuid.uuid4().hex[:8]}"
    assert ada.ask("PUT", project, json={"document": {"scenes": [{"id": "hall"}]}}).status_code == 201
    jobs = {name: ada.order(entry(), project_id=project[10:], scene=name) for name in ("hall", "later")}
    urls = {name: [v["url"] for v in ada.await_end(job_id)["variants"]] for name, job_id in jobs.items()}

    shown = ada.get(project)
    assert scenes(shown) == {"hall": urls["hall"]}
    assert [one["url"] for one in shown["unplaced"]] == urls["later"]
    assert (shown["status"], shown["image_upload_progress"]) == ("assets_generated", 100)

    assert ada.ask("POST", f"{project}/scenes", json={"id": "later"}).status_code == 201
    assert scenes(ada.get(project)) == urls
    assert ada.ask("PATCH", f"{project}/scenes", json={"order": ["later", "hall"]}).status_code == 200
    assert list(scenes(ada.get(project)).items()) == [("later", urls["later"]), ("hall", urls["hall"])]
    assert ada.ask("DELETE", f"{project}/scenes/hall").status_code == 204
    shown = ada.get(project)
    assert scenes(shown) == {"later": urls["later"]}
    assert [one["url"] for one in shown["unplaced"]] == urls["hall"]


def scenes(project):
    return {scene["id"]: scene["imageUrls"] for scene in project["generated_output"]["scenes"]}


def test_models_and_their_schemas_are_shown(world):
    """What an application lets its users choose from, with what each model takes."""
    ada = owner(world)

    videos = ada.get("/models?kind=video&provider=replicate")["models"]
    schema = ada.get("/models/standin/pictures/schema")["schema"]

    assert {"standin/text-to-video", "standin/image-to-video"} <= {model["name"] for model in videos}
    assert "num_outputs" in schema["properties"]
    assert ada.ask("GET", "/models/standin/nothing/schema").status_code == 404
