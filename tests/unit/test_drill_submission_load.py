"""What a drill orders: repeatable, known by its prompts, and with every trouble in it."""

import random

import pytest

from simulation.chaos import ledger, submission_load
from simulation.chaos.submission_load import Order, Ordered
from simulation.provider import script


def drawn(seed: int, count: int = 300) -> list[Order]:
    rng = random.Random(seed)
    return [submission_load.draw(rng, number, "p", 1) for number in range(count)]


def test_a_seed_orders_the_same_again():
    """A drill that failed must be had again."""
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_every_prompt_is_of_one_entry_alone():
    """The stand-in's ledger knows orders by their prompts."""
    prompts = [entry.prompt for order in drawn(7) for entry in order.chain]

    assert len(set(prompts)) == len(prompts)


def test_each_trouble_comes_at_each_provider_that_has_it():
    """What is not ordered is not tried."""
    entries = [entry for order in drawn(7) for entry in order.chain]

    providers = {"replicate", "fal", "openai"}
    assert {e.provider for e in entries if e.fails is None} == providers
    for fault in submission_load.SUBMITS:
        assert {e.provider for e in entries if e.script["submit"] == fault} == providers, fault
    assert {e.fails for e in entries} == {None, *submission_load.FAILS}
    assert {e.script["webhook"] for e in entries} == {"ok", *submission_load.WEBHOOKS}
    assert {len(order.chain) for order in drawn(7)} == {1, 2}
    assert any(order.placeholder for order in drawn(7))
    assert any(order.is_repeated for order in drawn(7))


def test_the_stand_in_takes_every_script():
    """A script that it refuses would end as an order that was refused."""
    for order in drawn(7):
        for entry in order.chain:
            plan = script.parse_script(
                dict(entry.script), (), {"shape": "data"} if entry.provider == "openai" else None
            )
            assert (plan.submit in submission_load.SUBMITS) == (
                entry.is_troubled and entry.fails not in ("invalid", "no_credit")
            )
            assert plan.submit not in ("invalid", "no_credit") or plan.submit_times == 0


def told(**changes: dict[str, object] | None) -> bool:
    """Return whether all is told of one order, when its ledger's lines differ so."""
    order = next(o for o in drawn(7) if o.chain[0].sends_webhook)
    prompt = order.chain[0].prompt
    lines = {
        "made": {"kind": "prediction", "prediction": "p", "prompt": prompt},
        "ended": {"kind": "ended", "prediction": "p", "status": "succeeded"},
        "webhook": {"kind": "webhook", "prediction": "p", "event": "completed", "http_status": 202},
        **changes,
    }
    return ledger.is_told([line for line in lines.values() if line], [Ordered(order, 0.0, ("job",))])


@pytest.mark.parametrize(
    "changes",
    [
        {"ended": None},
        {"webhook": None},
        {"webhook": {"kind": "webhook", "prediction": "p", "event": "completed", "http_status": 503}},
        {"webhook": {"kind": "webhook", "prediction": "p", "event": "completed", "http_status": None}},
        {"webhook": {"kind": "webhook", "prediction": "p", "event": "output", "http_status": 202}},
    ],
)
def test_the_drill_waits_for_what_is_still_to_be_told_of_an_order(changes):
    """A late success may take a placeholder's place after all was quiet."""
    assert told()
    assert not told(**changes)
