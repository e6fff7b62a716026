"""The rules of the design in the words of the model. Each returns what is wrong with a committed state, or None."""

from tests.exploration.moves import Step
from tests.exploration.state import (
    ENDED_JOB,
    IDLE,
    JOB,
    LIVE,
    NAMES,
    OUTPUTS,
    OUTPUTS_OF,
    PREDICTION_OF,
    PREDICTIONS,
    WORKERS,
    State,
)

DOOR = ("replay", "ingest", "poll", "commits")  # by a person, or by a late success; "commits" ends one of these


def broken(state: State) -> str | None:
    """Return the first law that a state breaks."""
    return _settled(state) or _published(state) or _objects(state) or _letters(state)


def _settled(state: State) -> str | None:
    job, waiting = state.db[JOB], [o for o in OUTPUTS if state.db[o].state == "waiting" and not state.db[o].deferred]
    if job.state == "keeping" and not waiting:
        return "rule 3: no output is live, and nobody settled the job"
    if job.state != "keeping" and waiting:
        return f"rule 3: the job is {job.state}, but {NAMES[waiting[0]]} waits"
    deferred = [o for o in OUTPUTS if state.db[o].deferred]
    if deferred and job.state == "succeeded":
        return f"rule 2: nobody needs {NAMES[deferred[0]]}, which is still attempted"
    reserve = [o for o in deferred if state.db[o].reserve]
    if reserve and job.state != "keeping":
        return f"rule 2: the job is {job.state}, and {NAMES[reserve[0]]} is in reserve"
    if any(PREDICTION_OF[o] != job.chosen and o not in reserve for o in deferred) and job.variants:
        return "rule 2: files of another prediction are published, and attempts go on"
    for p in PREDICTIONS if job.state == "failed" else ():
        if state.db[p].state == "succeeded" and not any(state.db[o].state for o in OUTPUTS_OF[p]):
            return f"rule 7: the job has failed, and the files of {NAMES[p]} were never attempted"
    return None


def _published(state: State) -> str | None:
    job, kept = state.db[JOB], tuple(o for o in OUTPUTS if state.db[o].state == "kept")
    if job.render != bool(job.variants):
        return "rule 3: a render without variants"
    if job.state in ("succeeded", "partial") and job.variants != kept:
        return f"rule 3: kept {[NAMES[o] for o in kept]}, published {[NAMES[o] for o in job.variants]}"
    if job.state in ("open", "failed") and job.render:
        return f"rule 3: a {job.state} job has a render"
    chosen = [p for p in PREDICTIONS if any(state.db[o].state for o in OUTPUTS if PREDICTION_OF[o] == p)]
    if any(state.db[p].state != "succeeded" for p in chosen) or (chosen and job.chosen not in chosen):
        return "rule 3: files of a prediction that was not chosen"
    if any(PREDICTION_OF[o] != job.chosen for o in job.variants):
        return "rule 3: files of two predictions are published"
    return None


def _objects(state: State) -> str | None:
    for o in OUTPUTS:
        if state.db[o].state == "kept" and (o, state.db[o].key) not in state.objects:
            return f"rule 4: {NAMES[o]} is kept, and its object is gone"
    for me in WORKERS:
        actor = state.actors[me]
        recordable = actor.doing == "record" and state.db[actor.slot].token == actor.token
        if recordable and not {(actor.slot, actor.token), (actor.slot, 0)} & state.objects:
            return f"rule 5: the object that worker {me} is about to record for {NAMES[actor.slot]} is gone"
    return None


def _letters(state: State) -> str | None:
    for slot, row in enumerate(state.db[1:], start=1):
        cancelled = slot in OUTPUTS and row.stopped
        given_up = (row.state in ("dead", "lost") and not cancelled) or (row.state == "discarded" and row.letter)
        if given_up != row.letter:
            return f"rule 8: {NAMES[slot]} is {row.state}, its dead letter is {'open' if row.letter else 'missing'}"
        if row.state not in LIVE[slot] and row.token:
            return f"rule 6: a lease on {NAMES[slot]}, which is {row.state}"
    return None


def broken_by(before: State, step: Step) -> str | None:
    """Return the law that a step breaks: ownership of rows, finality of what is published."""
    label, after = step.label, step.state
    old, new = before.db[JOB], after.db[JOB]
    if not set(old.variants) <= set(new.variants):
        return "rule 7: a published file is published no more"
    if any(before.db[o].key != after.db[o].key for o in old.variants):
        return "rule 7: a published file has changed"
    if (
        old.state in ENDED_JOB
        and new.state not in ENDED_JOB
        and not label.what.startswith(("replay", "ingest", "poll", "commits"))
        and not (label.what.startswith("record") and before.db[label.slot].deferred)
    ):
        return f"rule 7: the job was opened again by: {label}"
    return _foreign(before, step)


def _foreign(before: State, step: Step) -> str | None:
    """A worker changes leased rows only under their token; only a lease that has ended is taken away."""
    slot, who = step.label.slot, step.label.who
    row, now = before.db[slot], step.state.db[slot]
    if slot == JOB or not row.token or row == now:
        return None
    if who in WORKERS and before.actors[who].token != row.token:
        return f"rule 6: {step.label}, without holding its lease"
    if step.label.what.startswith("releases") and not row.over:
        return f"rule 6: {step.label}, though its worker lives"
    return None


def at_rest(state: State) -> bool:
    """Return whether nothing is left to do: all rows terminal, nobody at work, no object without a row."""
    rows = all(row.state not in LIVE[slot] for slot, row in enumerate(state.db[1:], start=1))
    owned = all(state.db[o].key == token or token == 0 for o, token in state.objects)
    return rows and owned and state.db[JOB].state in ENDED_JOB and all(a == IDLE for a in state.actors)
