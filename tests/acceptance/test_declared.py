"""Two providers that exist only in a TOML file, one signed and one not, through the real processes."""

import json
from pathlib import Path

import requests

from tests.acceptance.world import until
from tests.support import fork_server

ROOT = Path(__file__).parents[2]
FORGED = "https://evil.example/forged.png"


def start(world, provider, **script):
    """Start a prediction at the stand-in, with a webhook, and register it."""
    input_ = {"prompt": "a boat", "standin": {"duration_s": 0.3, "formats": ["png"], **script}}
    webhook = world.hook.replace("/replicate", f"/{provider}")
    external_id = world.standin.create_declared(provider, input_, webhook)
    return world.register(external_id, provider=provider)


def deliveries(world, asked):
    rows = world.rows("SELECT state FROM deliveries WHERE external_id = %(id)s", id=asked.external_id)
    return sorted(row["state"] for row in rows)


def ended_by(world, asked):
    return world.one("SELECT ended_by FROM predictions WHERE external_id = %(id)s", id=asked.external_id)["ended_by"]


def post(world, provider, body, **headers):
    url = world.hook.replace("/replicate", f"/{provider}")
    return requests.post(url, json.dumps(body).encode(), headers=headers, timeout=30).status_code


def test_every_row_of_declared_providers_ends_as_described(world):
    """Lost: polled. Duplicated: known. Forged: refused, or without a signature a reason to poll. Elsewhere: dead."""
    asked = {
        "whole": start(world, "atelier", outputs=2),
        "twice": start(world, "atelier", webhook="double"),
        "lost": start(world, "atelier", webhook="missing"),
        "forged": start(world, "atelier", webhook="bad_signature_only", webhook_life_s=1.0),
        "mixed": start(world, "atelier", outputs=2, faults={"1": "other_host"}),
        "failed": start(world, "atelier", status="failed", outputs=0),
        "thin": start(world, "luma"),
        "silent": start(world, "luma", webhook="missing"),
        "slow": start(world, "luma", duration_s=6.0),
    }
    body = {"task": {"id": asked["forged"].external_id, "state": "Painted", "files": [{"link": FORGED}]}}
    assert post(world, "atelier", body, **{"X-Atelier-Signature": "sha256=" + "0" * 64}) == 401
    assert post(world, "atelier", body) == 401
    assert (
        post(world, "luma", {"id": asked["slow"].external_id, "state": "completed", "assets": {"image": FORGED}}) == 202
    )

    world.await_end(*asked.values())

    states = {name: world.job(one)["state"] for name, one in asked.items()}
    assert states == {name: "failed" if name == "failed" else "succeeded" for name in asked}
    for one in asked.values():
        world.check(one)
    by_webhook = {name for name, one in asked.items() if ended_by(world, one) == "webhook"}
    assert by_webhook - {"slow"} == {"whole", "twice", "mixed", "failed", "thin"}
    received = {name: deliveries(world, one) for name, one in asked.items()}
    assert received["lost"] == received["forged"] == received["silent"] == []
    assert received["whole"] == received["twice"] == ["applied"]
    assert world.job(asked["failed"])["reason"] == "out of paint"
    (letter,) = world.letters(asked["mixed"])
    assert "not allowed for files.example.invalid" in letter["reason"]
    assert world.rows("SELECT FROM outputs WHERE source LIKE '%%evil.example%%'") == []
    assert world.standin.get_ledger()["summary"]["wrongly_signed_accepted"] == []
    audit = fork_server.run(["-m", "cli.main", "audit"], cwd=ROOT, env=world.local.environment(), timeout=200)
    assert audit.returncode == 0, audit.stdout


def test_a_job_with_a_declared_provider_in_its_chain_is_submitted_to_it(world):
    """The entry of the catalog with a submission: after a provider that fails, with its webhook lost."""
    script = {"duration_s": 0.3, "formats": ["png"], "webhook": "missing"}
    chain = [
        {"provider": "fal", "model": "standin/failing", "input": {"prompt": "a boat"}},
        {"provider": "bfl", "model": "flux-2-pro", "input": {"prompt": "a boat", "standin": script}},
    ]
    answer = requests.post(
        f"{world.local.url}/v1/jobs", json={"owner": "o1", "chain": chain}, headers=world.token, timeout=30
    )
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["job_id"]

    until(lambda: not world.rows("SELECT FROM jobs WHERE id = %(id)s AND run_at IS NOT NULL", id=job_id), "its end")

    rows = world.rows(
        "SELECT provider, state, ended_by FROM predictions WHERE job_id = %(id)s ORDER BY entry", id=job_id
    )
    assert [(row["provider"], row["state"]) for row in rows] == [("fal", "failed"), ("bfl", "succeeded")]
    assert rows[1]["ended_by"] == "poll"
    assert world.one("SELECT state FROM jobs WHERE id = %(id)s", id=job_id)["state"] == "succeeded"
