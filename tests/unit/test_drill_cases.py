"""The random job requests of a drill: reproducible, identified by their prompts, and with every fault."""

import random

import pytest

from simulation.cases import Case, CaseRun
from simulation.chaos import load
from simulation.provider import script
from simulation.provider.ledger import LedgerIndex, summarise


def draw(seed: int, count: int = 300) -> list[Case]:
    rng = random.Random(seed)
    return [load.draw_job_request(rng, number) for number in range(count)]


def test_a_seed_reproduces_its_job_requests():
    """A drill that failed must be reproducible."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_every_prompt_is_unique():
    """The stand-in's ledger identifies predictions by their prompts."""
    prompts = [case.prompt(number) for case in draw(7) for number in range(len(case.chain))]

    assert len(set(prompts)) == len(prompts)


def test_each_fault_occurs_at_each_provider_that_has_it():
    """A fault that is never drawn is not tested."""
    entries = [entry for case in draw(7) for entry in case.chain]

    providers = {"replicate", "fal", "openai"}
    assert {e.provider for e in entries if e.failure is None} == providers
    for fault in load.SUBMITS:
        assert {e.provider for e in entries if e.script["submit"] == fault} == providers, fault
    assert {e.failure for e in entries} == {None, *load.FAILURES}
    assert {e.script["webhook"] for e in entries} == {"ok", *load.ENTRY_WEBHOOKS}
    assert {len(case.chain) for case in draw(7)} == {1, 2}
    assert any(case.placeholder for case in draw(7))
    assert any(case.is_repeated for case in draw(7))


def test_the_stand_in_accepts_every_script():
    """A script that it rejects would end as a submission that was rejected."""
    for case in draw(7):
        for entry in case.chain:
            defaults = {"shape": "data"} if entry.provider == "openai" else None
            parsed = script.parse_script(dict(entry.script), (), defaults)
            assert (parsed.submit in load.SUBMITS) == (
                entry.is_troubled and entry.failure not in ("invalid", "no_credit")
            )
            assert parsed.submit not in ("invalid", "no_credit") or parsed.submit_times == 0


def has_reported(**changes: dict[str, object] | None) -> bool:
    """Return the result for one job request, with these changes to the lines of its ledger."""
    case = next(c for c in draw(7) if c.chain[0].sends_webhook)
    webhook = {"prediction": "p", "provider": "replicate", "webhook_id": "w", "signed": True, "status": "succeeded"}
    lines = {
        "created": {"kind": "prediction", "prediction": "p", "prompt": case.prompt(0), "provider": "fal", "key": None},
        "ended": {"kind": "ended", "prediction": "p", "status": "succeeded"},
        "webhook": {"event": "completed", "http_status": 202},
        **changes,
    }
    if lines["webhook"] is not None:
        lines["webhook"] = {"kind": "webhook", **webhook, **lines["webhook"]}
    present = [line for line in lines.values() if line]
    index = LedgerIndex.build({"summary": summarise(present), "lines": present})
    return load.is_reported(index, [CaseRun(case, ("job",))])


@pytest.mark.parametrize(
    "changes",
    [
        {"ended": None},
        {"webhook": None},
        {"webhook": {"event": "completed", "http_status": 503}},
        {"webhook": {"event": "completed", "http_status": None}},
        {"webhook": {"event": "output", "http_status": 202}},
    ],
)
def test_the_drill_waits_for_missing_reports_of_a_job_request(changes):
    """A late success may replace a placeholder after all other work has ended."""
    assert has_reported()
    assert not has_reported(**changes)
