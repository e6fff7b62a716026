"""A project's document, while eight workers finish its files and the application overwrites it."""

import json
import random
import threading
import uuid
from collections import Counter

import pytest
import requests

from db.connection import connect
from tests.acceptance.retry_503 import patient
from tests.acceptance.world import until

SHORT, LONG = (10, 3), (20, 5)  # scenes, and files of each
ROUNDS = [pytest.param(0, *SHORT), *(pytest.param(number, *LONG, marks=pytest.mark.prove) for number in range(1, 51))]
WEBHOOKS = ("ok", "double", "double_new_id", "out_of_order", "missing")


@pytest.mark.timeout(400)  # a hundred files
@pytest.mark.parametrize(("number", "scenes", "outputs"), ROUNDS)
def test_no_file_of_a_project_is_lost_or_doubled(world, number, scenes, outputs):
    """The field's worst bug: a scene's URLs written over by whoever saved the document last."""
    project_id = f"big{number}-{uuid.uuid4().hex[:8]}"
    stale = {"scenes": [{"id": f"s{n}", "imageUrls": ["stale"]} for n in range(scenes)]}
    assert put(world, project_id, stale).status_code == 201
    order = random.sample(range(scenes), scenes)

    with Overwriting(world, project_id, stale) as application:
        asked = {n: world.ask(script(n, outputs), project_id=project_id, scene=f"s{n}") for n in order}
        world.await_end(*asked.values(), seconds=180)
        until(lambda: application.times > 20, "it was overwritten many times")
    until(lambda: is_computed(world, project_id), "the document was computed again")

    shown = requests.get(address(world, project_id), headers=world.token, timeout=30).json()
    stored = world.one("SELECT document FROM projects WHERE id = %(id)s", id=project_id)["document"]
    expected = {
        f"s{n}": [world.blobs.build_asset_url(row["key"]) for row in world.outputs(one)] for n, one in asked.items()
    }
    assert {scene["id"]: scene["imageUrls"] for scene in stored["scenes"]} == expected
    assert {scene["id"]: scene["imageUrls"] for scene in shown["generated_output"]["scenes"]} == expected
    assert len({url for urls in expected.values() for url in urls}) == scenes * outputs
    placed = world.rows("SELECT scene_key FROM placements WHERE project_id = %(id)s", id=project_id)
    assert Counter(row["scene_key"] for row in placed) == {f"id:s{n}": outputs for n in range(scenes)}
    assert (shown["status"], shown["image_upload_progress"]) == ("assets_generated", 100)
    for one in asked.values():
        world.check(one)


def script(n, outputs):
    """Return what the stand-in makes of a scene: when it is done and how often it says so is chance."""
    duration = random.uniform(0.1, 1.5)
    return {"outputs": outputs, "duration_s": duration, "webhook": WEBHOOKS[n % len(WEBHOOKS)]}


def address(world, project_id):
    return f"{world.local.url}/v1/projects/{project_id}"


def put(world, project_id, document):
    body = {"owner": "o1", "document": document}
    return patient(lambda: requests.put(address(world, project_id), json=body, headers=world.token, timeout=60))


def is_computed(world, project_id):
    told = """SELECT computed_md5 IS NOT DISTINCT FROM document_md5 AND status = 'assets_generated' AS same
                FROM projects WHERE id = %(id)s"""
    return world.one(told, id=project_id)["same"]


class Overwriting:
    """An application that writes its stale copy of the document over and over, by SQL and by the API in turn."""

    def __init__(self, world, project_id, document):
        self.times = 0
        self._world, self._project_id, self._document = world, project_id, document
        self._done = threading.Event()
        self._failed = []
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        conn = connect(self._world.url, name="application")
        sql = "UPDATE projects SET document = %(d)s::jsonb WHERE id = %(id)s"
        while not self._done.wait(0.1):
            if self.times % 2:
                conn.execute(sql, {"d": json.dumps(self._document), "id": self._project_id})
            else:
                answer = put(self._world, self._project_id, self._document)
                self._failed += [answer.text] if answer.status_code != 200 else []
            self.times += 1
        conn.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        assert self._failed == []
