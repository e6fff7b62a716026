"""A SIGKILL at every point of a submission, in a process of its own: nothing is lost, nothing is sent twice."""

from collections.abc import Iterator

import pytest

from embedded.stack import Stack
from tests.integration.core import World, database_of, prediction, world
from tests.integration.studio import Studio, crash, entry, open_studio, ordered, tries

SENT = ("submit.after_answer", "submit.before_commit", "submit.after_commit")
LOOKED = ("lookup.before_request", "lookup.after_answer", "lookup.after_commit")
GENERATED = ("generate.after_claim", "submit.after_begin", *SENT)


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "submit_crashes")


@pytest.fixture
def studio() -> Iterator[Studio]:
    with open_studio() as made:
        yield made


@pytest.fixture
def at(stack: Stack, url: str, studio: Studio) -> Iterator[World]:
    with world(stack, url, egress_allow=(studio.address,), **given(studio)) as made:
        yield made


def given(studio: Studio) -> dict[str, str]:
    return {"replicate_api_url": studio.url, "openai_api_key": "sk-secret", "openai_api_url": studio.url}


@pytest.fixture
def environment(stack: Stack, url: str, studio: Studio, at: World) -> dict[str, str]:
    names = {name.upper(): value for name, value in given(studio).items()}
    return {
        **stack.environment(),
        **names,
        "DATABASE_URL": url,
        "REPLICATE_API_TOKEN": "r8_token",
        "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
        "MOORAGE_EGRESS_ALLOW": studio.address,
    }


def carry_on(at: World, step, job_id) -> None:
    """Take the wakes that dispatch would send, each a minute and more after the one before."""
    for _ in range(6):
        for row in tries(at, job_id):
            if row["state"] in ("planned", "submitting"):
                at.conn.execute(
                    "UPDATE predictions SET run_at = moment(), submitted_at = submitted_at - interval '70 s'"
                    " WHERE id = %s",
                    (row["id"],),
                )
                at.step(step, row["id"])


@pytest.mark.parametrize("point", ["submit.after_claim", "submit.after_begin", *SENT])
def test_a_crash_of_a_submission_makes_one_prediction(at: World, studio: Studio, environment, point) -> None:
    """With a list the key tells whether it was sent: at most one is made, and one there will be."""
    made = ordered(at)

    crash(at, "submit", made.prediction_id, point, environment)
    carry_on(at, "submit", made.job_id)

    assert [row["state"] for row in tries(at, made.job_id)][-1] == "running"
    assert len(studio.made) == 1
    running = tries(at, made.job_id)[-1]
    at.step("ingest", at.delivered(prediction(running["external_id"], "succeeded", [studio.picture()])))
    assert len(at.outputs(made.job_id)) == 1


@pytest.mark.parametrize("point", LOOKED)
def test_a_crash_of_a_look_is_looked_at_again(at: World, studio: Studio, environment, point) -> None:
    """Looking changes nothing at the provider: it may be done any number of times."""
    made = ordered(at)
    studio.script = [(500, {})]
    at.step("submit", made.prediction_id)
    at.conn.execute(
        "UPDATE predictions SET submitted_at = moment() - interval '5 s', run_at = moment() WHERE id = %s",
        (made.prediction_id,),
    )

    crash(at, "submit", made.prediction_id, point, environment)
    carry_on(at, "submit", made.job_id)

    (row,) = tries(at, made.job_id)
    assert (row["state"], row["external_id"], len(studio.made)) == ("running", "p1", 1)


@pytest.mark.parametrize("point", GENERATED)
def test_a_crash_of_a_generation_publishes_nothing_twice(at: World, studio: Studio, environment, point) -> None:
    """Without a list nobody knows whether it was made: the history says so, and the chain goes on."""
    made = ordered(at, entry("openai"), entry())

    crash(at, "generate", made.prediction_id, point, environment)
    carry_on(at, "generate", made.job_id)

    first, *_ = tries(at, made.job_id)
    if point == "generate.after_claim":
        assert first["state"] == "succeeded"
    elif point == "submit.after_commit":
        assert (first["state"], len(at.outputs(made.job_id))) == ("succeeded", 1)
    else:
        assert first["reason"].startswith("submit uncertain: ")
        assert at.outputs(made.job_id) == []
    assert len([order for order in studio.orders if order["path"].startswith("/v1/images")]) <= 1
