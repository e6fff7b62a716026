"""
From the verdict to "All clear" with nothing but the console: what the runbook says of five faults, in a browser.

The test breaks and repairs what stands outside (a worker, storage, a provider, a secret); everything else is links and
buttons of the pages.
"""

import re
import signal
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from moorage import ids
from tests.acceptance import browser as drive
from tests.acceptance.world import SETTINGS, World, until

UNSIGNED = "whsec_" + "d3Jvbmc" * 6 + "d3Jv"
AGE_HISTORY = """
UPDATE predictions SET ended_at = ended_at - interval '2 h' WHERE ended_at > clock_timestamp() - interval '1 h'
"""
DISCARD_LETTERS = """
UPDATE dead_letters SET state = 'discarded', closed_at = clock_timestamp(), closed_by = 'test' WHERE state = 'open'
"""
FORGET_REFUSALS = "DELETE FROM webhook_refusals"
ADD_DELIVERIES = """
INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256, external_id, state, run_at, ended_at)
SELECT id, 'replicate', 'walk ' || id, %(body)s, %(sha256)s, %(external_id)s, 'dead', NULL, clock_timestamp()
  FROM unnest(%(ids)s::uuid[]) id
"""
ADD_LETTERS = """
INSERT INTO dead_letters (id, subject, subject_id, provider, step, category, error, reason, retryable, facts)
SELECT letter_id, 'delivery', id, 'replicate', 'ingest', %(category)s, %(error)s, %(reason)s, %(retryable)s, %(facts)s
  FROM unnest(%(ids)s::uuid[], %(letter_ids)s::uuid[]) t (id, letter_id)
"""


@pytest.fixture
def page(chromium: Any, world: World) -> Iterator[Any]:
    """Open the console of a system without a problem, whatever earlier tests left in its history."""
    world.end_others()
    with drive.console_of(chromium, world.local.url, world.local.secrets["api_token"]) as opened:
        opened.get_by_role("link", name="Overview", exact=True).click()
        try:
            until(lambda: is_cleared(world, opened), "All clear")
        except pytest.fail.Exception:
            pytest.fail(opened.locator("#live").inner_text()[:1500])
        yield opened


def is_cleared(world: World, page: Any) -> bool:
    """Remove what earlier tests left; each time, as the receiver writes refusals a second after it refused."""
    for statement in (AGE_HISTORY, DISCARD_LETTERS, FORGET_REFUSALS):
        world.rows(f"WITH changed AS ({statement} RETURNING 1) SELECT 1")
    return bool(page.get_by_role("heading", name="All clear").is_visible())


def await_all_clear(page: Any) -> None:
    page.get_by_role("link", name="Overview", exact=True).click()
    page.get_by_role("heading", name="All clear").wait_for(timeout=120_000)


def problem(page: Any, text: str) -> Any:
    """Return a problem of the verdict, once it is shown."""
    found = page.locator(".verdict li").filter(has_text=re.compile(text)).first
    try:
        found.wait_for(timeout=100_000)
    except Exception as error:
        raise AssertionError(page.locator("#live").inner_text()[:1500]) from error
    assert re.fullmatch(r"\d+ problems?", page.locator("#verdict").inner_text())
    return found.locator(".links")


def follow(links: Any, name: str) -> None:
    """Click a link of a problem, by its visible text."""
    links.get_by_role("link", name=re.compile(f"^{name} ?:")).click()


def await_result(page: Any, text: str) -> None:
    page.locator("p.result").filter(has_text=re.compile(text)).wait_for()


def pause(page: Any, target: str, reason: str) -> None:
    assert page.get_by_label("Target").input_value() == target
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.locator(".banner").filter(has_text=f"{target} is paused").wait_for()


def resume(page: Any, target: str) -> None:
    follow(problem(page, f"{target} is paused"), "Resume")
    page.get_by_role("button", name=f"Resume {target}").click()
    page.get_by_text("Nothing is paused.").wait_for()


def add_letters(world: World, count: int, external_id: str, body: bytes, **cause: Any) -> list[UUID]:
    """Give up on webhooks for a cause, as ingest does."""
    made = [ids.uuid7() for _ in range(count)]
    letters = [ids.uuid7() for _ in range(count)]
    world.rows(
        f"WITH a AS ({ADD_DELIVERIES} RETURNING 1), b AS ({ADD_LETTERS} RETURNING 1) SELECT 1",
        ids=made, letter_ids=letters, body=body, sha256="0" * 64, external_id=external_id,
        facts=Jsonb({}), **cause,
    )  # fmt: skip
    return made


@pytest.mark.parametrize("count", [pytest.param(200, marks=pytest.mark.prove)])
def test_dead_letters_of_two_causes(world: World, page: Any, count: int) -> None:
    """One cause can be repaired, and its rows replayed; the other is acknowledged, with a note."""
    asked = world.ask({})
    world.await_end(asked)
    (sent,) = world.rows(
        "SELECT body FROM deliveries WHERE external_id = %(id)s ORDER BY received_at DESC LIMIT 1", id=asked.external_id
    )
    repaired = add_letters(
        world, count * 3 // 5, asked.external_id, bytes(sent["body"]), category="UNKNOWN_PREDICTION",
        error="UnknownPrediction", reason=f"replicate prediction {asked.external_id} was not registered in time",
        retryable=True,
    )  # fmt: skip
    broken = add_letters(
        world, count * 2 // 5, asked.external_id, b"{", category="VALIDATION_FAILED", error="MalformedPayload",
        reason="the body is not JSON", retryable=False,
    )  # fmt: skip

    follow(problem(page, f"{count} open dead letters"), "Dead letters")
    assert page.locator("tbody").first.locator("tr").count() == 2
    assert drive.violations(page) == []
    page.get_by_role("link", name="UNKNOWN_PREDICTION").first.click()
    page.get_by_role("button", name=f"Replay all {len(repaired)} that match").click()
    page.get_by_text(f"{len(repaired)} dead letters, 0 expire within 10 min").wait_for()
    assert drive.violations(page) == []
    page.get_by_role("button", name=f"Replay {len(repaired)}").click()
    await_result(page, f"{len(repaired)} replayed")

    page.get_by_role("link", name="Dead letters", exact=True).click()
    page.get_by_role("button", name="Acknowledge all").click()
    page.get_by_label("Note").fill("a proxy cut the bodies; it is repaired")
    page.get_by_role("button", name=f"Acknowledge {len(broken)}").click()
    await_result(page, f"{len(broken)} acknowledged")

    await_all_clear(page)
    states = "SELECT state, count(*) AS n FROM deliveries WHERE id = ANY(%(ids)s) GROUP BY 1"
    until(lambda: world.rows(states, ids=repaired) == [{"state": "ignored", "n": len(repaired)}], "all are ingested")
    assert world.rows(states, ids=broken) == [{"state": "dead", "n": len(broken)}]
    notes = "SELECT DISTINCT note, acknowledged_by FROM dead_letters WHERE subject_id = ANY(%(ids)s)"
    assert world.rows(notes, ids=broken) == [
        {"note": "a proxy cut the bodies; it is repaired", "acknowledged_by": "console"}
    ]


@pytest.mark.prove
def test_a_worker_hangs(world: World, page: Any) -> None:
    """It holds rows and its queue, and says nothing: Celery sees a worker, the console a queue without one."""
    frozen = [world.local.processes[name] for name in ("keep1", "keep2")]
    for process in frozen:
        process.signal_group(signal.SIGSTOP)
    try:
        asked = world.ask({"outputs": 3})

        trouble = problem(page, "queue keep has .* and no worker|no worker answered")
        follow(trouble, "Workers")
        page.locator("tr.late").filter(has_text="keep").first.wait_for()
        assert drive.violations(page) == []
        page.get_by_role("link", name="Overview", exact=True).click()
        follow(problem(page, "queue keep has .* and no worker"), "Runbook")
        section = page.get_by_role("heading", name="A queue without a worker")
        section.wait_for()
        assert section.evaluate("heading => heading.matches(':target')")
        page.get_by_text("docker compose up -d worker-keep").first.wait_for()
    finally:
        for process in frozen:
            process.kill()
            process.launch()

    await_all_clear(page)
    world.await_end(asked)
    world.check(asked)


@pytest.mark.prove
def test_storage_is_stopped(world: World, page: Any) -> None:
    """Nothing is downloaded in vain, and everybody sees why."""
    weed = world.local.stack.seaweedfs
    weed.kill()
    asked = world.ask({"outputs": 2})

    follow(problem(page, "storage is unavailable"), "Pause keep")
    pause(page, "keep", "storage is restarted")
    assert drive.violations(page) == []
    weed.start()
    page.get_by_role("link", name="Overview", exact=True).click()
    resume(page, "keep")

    await_all_clear(page)
    world.await_end(asked)
    world.check(asked)


@pytest.mark.prove
def test_a_provider_answers_500(world: World, page: Any) -> None:
    """Attempts go on in vain until somebody pauses them; what waited is due when it is resumed."""
    workers = [world.local.processes[name] for name in ("keep1", "keep2")]
    for worker in workers:
        worker.relaunch(MOORAGE_MAX_ERRORS="50")  # as long as an operator needs
    asked = [world.ask({"duration_s": 5.0, "outputs": 2}) for _ in range(3)]
    world.standin.begin_outage(600, outputs=True)
    try:
        problem(page, "files? failed at least twice|the download host .* fails")
        page.get_by_role("link", name="Outputs", exact=True).click()
        page.get_by_label("State").select_option("waiting")
        page.get_by_role("button", name="Show").click()
        page.locator("tbody tr").filter(has_text="returned 503").first.wait_for()
        assert drive.violations(page) == []
        page.get_by_role("link", name="Pauses", exact=True).click()
        page.get_by_label("Target").select_option("replicate")
        pause(page, "replicate", "their incident 4711")
    finally:
        world.standin.begin_outage(0)
    page.get_by_role("link", name="Overview", exact=True).click()
    resume(page, "replicate")

    await_all_clear(page)
    world.await_end(*asked)
    assert {world.job(one)["state"] for one in asked} == {"succeeded"}
    for worker in workers:
        worker.relaunch(MOORAGE_MAX_ERRORS=SETTINGS["MOORAGE_MAX_ERRORS"])


@pytest.mark.prove
def test_a_secret_is_wrong(world: World, page: Any) -> None:
    """Webhooks are refused; what was missed is found in the provider's list."""
    receiver = world.local.processes["receiver"]
    right = world.local.environment()["REPLICATE_WEBHOOK_SECRET"]
    receiver.relaunch(REPLICATE_WEBHOOK_SECRET=UNSIGNED)
    receiver.await_ready()
    try:
        missed = [world.standin.create_prediction({"standin": {}}, world.hook)["id"] for _ in range(2)]

        trouble = problem(page, r"replicate: \d+ webhooks? refused")
        trouble.get_by_role("link", name="Recover").wait_for()
        follow(trouble, "Runbook")
        page.get_by_role("heading", name="Webhooks are refused").wait_for()
    finally:
        receiver.relaunch(REPLICATE_WEBHOOK_SECRET=right)
        receiver.await_ready()

    page.get_by_role("link", name="Recover", exact=True).click()
    page.get_by_role("button", name="Dry run").click()
    page.get_by_text(re.compile(r"to be registered, \d+ to be polled")).wait_for()
    assert drive.violations(page) == []
    page.get_by_role("button", name=re.compile(r"Recover \d+")).click()
    await_result(page, r"\d+ registered")

    await_all_clear(page)
    for external_id in missed:
        until(lambda name=external_id: kept(world, name), f"{external_id} is kept")


def kept(world: World, external_id: str) -> bool:
    rows = world.rows(
        "SELECT j.state FROM jobs j JOIN predictions p ON p.job_id = j.id WHERE p.external_id = %(id)s", id=external_id
    )
    return [row["state"] for row in rows] == ["succeeded"]
