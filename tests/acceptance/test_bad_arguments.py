"""A known task with arguments that name no row: Celery would log a failure and forget the message."""

import base64
import json
from uuid import uuid4

import pytest

from tests.acceptance.world import until


@pytest.mark.parametrize("args", [["not-a-row-id"], [], [7], [{"id": 1}], ["a", "b"]])
def test_arguments_that_name_no_row_become_a_dead_letter(world, args):
    """No silence: what cannot be worked on is told, and the worker lives."""
    pids = world.pids()
    body = base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()

    world.push("keep", {"body": body}, lang="py", task="moorage.keep", id=str(uuid4()), argsrepr="()", kwargsrepr="{}")

    told = "SELECT reason FROM dead_letters WHERE subject = 'message' AND facts ->> 'body' = %(body)s"
    found = until(lambda: world.rows(told, body=repr((tuple(args), {}))), "a dead letter")
    assert "do not name a row" in found[0]["reason"]
    assert world.pids() == pids
