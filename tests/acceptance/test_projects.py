"""A project's document, while many workers finish its files and the application overwrites it."""

import json
import threading
from collections import Counter

from db.connect import connect
from tests.acceptance.world import until

SCENES, OUTPUTS = 20, 5


def test_no_file_of_a_project_is_lost_or_doubled(world):
    """The field's worst bug: a scene's URLs written over by whoever saved the document last."""
    stale = json.dumps({"scenes": [{"id": f"s{n}", "imageUrls": ["stale"]} for n in range(SCENES)]})
    world.rows("INSERT INTO projects (id, owner, document) VALUES ('big', 'o1', %(d)s::jsonb) RETURNING id", d=stale)

    with Overwriting(world.url, stale) as application:
        asked = [
            world.ask({"outputs": OUTPUTS, "duration_s": 1.0}, project_id="big", scene=f"s{n}") for n in range(SCENES)
        ]
        world.await_end(*asked, seconds=60)
    until(lambda: is_computed(world), "the document was computed again")

    assert application.times > 20
    document = world.one("SELECT document FROM projects WHERE id = 'big'")["document"]
    for n, one in enumerate(asked):
        assert document["scenes"][n]["id"] == f"s{n}"
        assert document["scenes"][n]["imageUrls"] == [world.blobs.asset_url(r["key"]) for r in world.outputs(one)]
        world.check(one)
    placed = world.rows("SELECT scene_key FROM placements WHERE project_id = 'big'")
    assert Counter(row["scene_key"] for row in placed) == {f"id:s{n}": OUTPUTS for n in range(SCENES)}


def is_computed(world):
    told = "SELECT computed_md5 IS NOT DISTINCT FROM document_md5 AS same FROM projects WHERE id = 'big'"
    return world.one(told)["same"]


class Overwriting:
    """An application that writes its stale copy of the document over and over."""

    def __init__(self, url, document):
        self.times = 0
        self._url, self._document = url, document
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        conn = connect(self._url, name="application")
        while not self._done.wait(0.1):
            conn.execute("UPDATE projects SET document = %(d)s::jsonb WHERE id = 'big'", {"d": self._document})
            self.times += 1
        conn.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
