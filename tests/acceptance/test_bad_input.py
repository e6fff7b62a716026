"""Bad input through the real processes: each ends as the stand-in's ledger says, and the siblings go on."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from simulation.provider import script
from simulation.provider.webhooks import sign
from tests.acceptance.world import until

DEAD = {
    "404_always": "DOWNLOAD_FAILED",
    "500_always": "DOWNLOAD_FAILED",
    "truncated_always": "DOWNLOAD_FAILED",
    "too_large": "DOWNLOAD_FAILED",
    "endless": "DOWNLOAD_FAILED",
    "redirect_loop": "DOWNLOAD_FAILED",
    "private_redirect": "DOWNLOAD_FAILED",
    "metadata_redirect": "DOWNLOAD_FAILED",
    "private_url": "DOWNLOAD_FAILED",
    "other_host": "DOWNLOAD_FAILED",
    "half_file": "VALIDATION_FAILED",
    "corrupt": "VALIDATION_FAILED",
    "web_page": "VALIDATION_FAILED",
    "bomb": "VALIDATION_FAILED",
    "empty": "DOWNLOAD_FAILED",
    "slow_forever": "DOWNLOAD_FAILED",  # last: three attempts of ten seconds
}
# Attempts go on until the URL expires; their jobs end before that.
LASTING = ("500_always", "truncated_always", "empty", "slow_forever")
KEPT = [name for name, fault in script.FAULTS.items() if fault.expected == "kept"]


@pytest.fixture(scope="module")
def faulty(shared_world):
    """One job for each fault, all at once: the fault first, a good sibling after it. The last end after 40 seconds."""
    scripts = {name: {"outputs": 2, "faults": {"0": name}} for name in reversed([*KEPT, *DEAD])}
    for name in LASTING:
        scripts[name]["output_life_s"] = 40.0
    return {name: shared_world.ask(asked) for name, asked in scripts.items()}


def test_every_fault_of_the_stand_in_is_tried():
    """A fault that is added there must be answered for here."""
    assert {*KEPT, *DEAD} == set(script.FAULTS)


@pytest.mark.parametrize("fault", KEPT)
def test_a_passing_fault_costs_nothing(world, faulty, fault):
    """What a provider mends by itself must not reach a person."""
    world.await_end(faulty[fault])

    assert world.job(faulty[fault])["state"] == "succeeded"
    assert world.letters(faulty[fault]) == []
    world.check(faulty[fault])


@pytest.mark.parametrize("webhook", sorted(script.WEBHOOKS))
def test_webhooks_of_every_habit_make_one_set_of_rows(world, webhook):
    """Late, doubled, missing, out of order, wrongly signed: the job has its files once."""
    asked = world.ask({"webhook": webhook, "late_s": 1.0, "outputs": 2})

    world.await_end(asked)
    if webhook == "out_of_order":
        count = "SELECT count(*) AS n FROM deliveries WHERE external_id = %(id)s AND state = 'ignored'"
        until(lambda: world.one(count, id=asked.external_id)["n"] == 1, "the backwards webhook was ignored")

    assert world.job(asked)["state"] == "succeeded"
    assert len(world.outputs(asked)) == 2
    world.check(asked)


@pytest.mark.parametrize("status", ["failed", "canceled", "aborted"])
def test_a_prediction_that_fails_fails_its_job_without_a_file(world, status):
    """Previews of a failed run are not results."""
    asked = world.ask({"status": status, "outputs": 4})

    world.await_end(asked)

    job = world.job(asked)
    assert (job["state"], job["category"]) == ("failed", "PROVIDER_FAILED")
    assert world.outputs(asked) == []
    world.check(asked)


@pytest.mark.parametrize("shape", ["null", "text"])
def test_a_success_without_a_file_fails_at_once(world, shape):
    """A success that brings nothing must not look like one."""
    asked = world.ask({"shape": shape})

    world.await_end(asked)

    assert world.job(asked)["state"] == "failed"
    assert "NO_OUTPUT" in world.job(asked)["reason"]


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe\x00", b"no json", b"[]", b'{"id": 7}', b"[" * 100_000],
    ids=["not UTF-8", "not JSON", "a list", "a number for an id", "nested brackets"],
)
def test_a_signed_body_that_cannot_be_understood_is_a_dead_letter(world, body):
    """It was accepted, so it may not vanish; no worker may die of it."""
    before = world.pids()
    webhook_id = f"msg_{len(body)}{body[:1].hex()}"

    assert send(world, body, webhook_id).status_code == 202

    state = "SELECT state, body FROM deliveries WHERE webhook_id = %(id)s AND run_at IS NULL"
    (row,) = until(lambda: world.rows(state, id=webhook_id), "the delivery ended")
    assert (row["state"], bytes(row["body"])) == ("dead", body)
    letters = "SELECT category FROM dead_letters JOIN deliveries v ON v.id = subject_id WHERE webhook_id = %(id)s"
    assert world.rows(letters, id=webhook_id) == [{"category": "VALIDATION_FAILED"}]
    assert world.pids() == before


def test_fifty_copies_at_once_are_one_delivery(world):
    """Providers retry while the first attempt is still being answered."""
    asked = world.ask({"webhook": "missing", "outputs": 3, "duration_s": 0.0})
    until(lambda: world.standin.get_prediction(asked.external_id)["status"] == "succeeded", "the prediction ended")
    body = json.dumps(world.standin.get_prediction(asked.external_id)).encode()

    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda _: send(world, body, "msg_fifty").status_code, range(50)))

    assert sorted(answers) == [200] * 49 + [202]
    world.await_end(asked)
    assert len(world.rows("SELECT id FROM deliveries WHERE webhook_id = 'msg_fifty'")) == 1
    world.check(asked)


def test_what_postgres_cannot_hold_does_not_cost_the_files(world):
    """A NUL in the logs, a number above 2^53: the bytes are kept as they came, and the files too."""
    asked = world.ask({"webhook": "missing", "duration_s": 0.0})
    until(lambda: world.standin.get_prediction(asked.external_id)["status"] == "succeeded", "the prediction ended")
    said = world.standin.get_prediction(asked.external_id) | {"logs": "a\x00b", "metrics": {"total": 2**63 + 1}}
    body = json.dumps(said).encode()

    assert send(world, body, "msg_nul").status_code == 202

    world.await_end(asked)
    assert bytes(world.one("SELECT body FROM deliveries WHERE webhook_id = 'msg_nul'")["body"]) == body
    world.check(asked)


def test_a_webhook_and_a_poll_at_once_make_one_set_of_rows(world):
    """Both find the same success; the job's lock lets one of them insert."""
    asked = world.ask({"webhook": "missing", "outputs": 3, "duration_s": 0.0})
    until(lambda: world.standin.get_prediction(asked.external_id)["status"] == "succeeded", "the prediction ended")
    body = json.dumps(world.standin.get_prediction(asked.external_id)).encode()

    poll_now = "UPDATE predictions SET run_at = moment() WHERE job_id = %(id)s AND state = 'running' RETURNING id"
    world.rows(poll_now, id=asked.job_id)
    sender = threading.Thread(target=send, args=(world, body, "msg_race"))
    sender.start()
    sender.join()

    world.await_end(asked)
    world.check(asked)


@pytest.mark.parametrize("fault", DEAD)
def test_a_lasting_fault_is_a_dead_letter_and_its_sibling_is_kept(world, faulty, fault):
    """What cannot be kept has a reason that a person can act on, and takes nothing else down."""
    world.await_end(faulty[fault], seconds=120)

    assert world.job(faulty[fault])["state"] == "partial"
    (letter,) = world.letters(faulty[fault])
    assert (letter["path"], letter["category"], letter["state"]) == ("output[0]", DEAD[fault], "open")
    assert letter["reason"]
    row = world.outputs(faulty[fault])[0]
    assert row["category"] == DEAD[fault]
    assert (row["quarantine_key"] is not None) == (DEAD[fault] == "VALIDATION_FAILED")
    assert world.standin.get_ledger()["summary"]["traps"] == 0  # nobody came to the private port
    world.check(faulty[fault])


def send(world, body, webhook_id):
    stamp = str(int(time.time()))
    headers = {
        "webhook-id": webhook_id,
        "webhook-timestamp": stamp,
        "webhook-signature": sign(world.standin.secret, webhook_id, stamp, body),
        "Content-Type": "application/json",
    }
    return requests.post(world.hook, data=body, headers=headers, timeout=30)
