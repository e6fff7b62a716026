"""Cases of demo and drill: job requests, and predictions to register, with their expected results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

MODELS: Final = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """
    An entry of a fallback chain.

    Args:
        script: for the stand-in.
        seconds: its time limit.
        failure: the reason why it yields no files within its time limit; None: it yields files.
    """

    provider: str
    script: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 60.0
    failure: str | None = None
    model: str | None = None

    @property
    def is_troubled(self) -> bool:
        """Return True if the submission fails by its script, so that it is repeated without a fault of the drill."""
        return bool(self.script.get("submit", "ok") != "ok")

    @property
    def sends_webhook(self) -> bool:
        return self.provider != "openai" and bool(self.script.get("webhook") != "missing")


@dataclass(frozen=True, slots=True)
class Case:
    """
    A job: a job request with a fallback chain, or a prediction that the application starts and registers.

    Args:
        name: unique; the Idempotency-Key of a job request.
        input: of the prediction to register; None for a job request.
        registration: of the prediction; "late": after its webhook.
        policy: for partial results.
        source: the input file `image` of every entry.
        action: of the application, once a prediction is running ("cancel") or the job has failed ("retry").
        is_repeated: the request is sent twice.
        state: expected state of the job; None: not exactly known.
        providers: expected providers of the job's predictions; None: not checked.
        files: expected number of files that readers see; checked with `providers`.
        needs_placeholder: a placeholder is expected, at least temporarily.
    """

    name: str
    input: Body | None = None
    chain: tuple[Entry, ...] = ()
    registration: Literal["at once", "late", "never"] = "at once"
    policy: Literal["keep", "discard"] = "keep"
    kind: Literal["image", "video"] = "image"
    project: str | None = None
    scene: str | int | None = None
    placeholder: bool = False
    source: Literal["upload", "kept output"] | None = None
    action: Literal["cancel", "retry"] | None = None
    is_repeated: bool = False
    deadline_seconds: float | None = None
    state: str | None = "succeeded"
    providers: tuple[str, ...] | None = None
    files: int = 1
    needs_placeholder: bool = False

    def prompt(self, number: int) -> str:
        """Return the prompt of an entry, which identifies its predictions in the stand-in's ledger."""
        return f"{self.name}, entry {number}"

    def build_request(self, image: Body | None = None) -> Body:
        """Return the body of POST /v1/jobs, without the owner."""
        inputs = [
            {"prompt": self.prompt(number), "standin": entry.script, **({"image": image} if image else {})}
            for number, entry in enumerate(self.chain)
        ]
        chain = [
            {"provider": e.provider, "model": e.model or MODELS[e.provider], "input": input_, "seconds": e.seconds}
            for e, input_ in zip(self.chain, inputs, strict=True)
        ]
        deadline = {} if self.deadline_seconds is None else {"deadline_seconds": self.deadline_seconds}
        return {"prompt": self.name, "chain": chain, "placeholder": self.placeholder, **self._common(), **deadline}

    def build_registration(self, external_id: str) -> Body:
        """Return the body of POST /v1/predictions, without the owner."""
        prompt = (self.input or {})["prompt"]
        return {"provider": "replicate", "external_id": external_id, "prompt": prompt, **self._common()}

    def _common(self) -> Body:
        placement = {} if self.project is None else {"project_id": self.project, "scene": self.scene}
        return {"kind": self.kind, "policy": self.policy, **placement}


@dataclass(slots=True)
class CaseRun:
    """
    A case whose request was accepted.

    Args:
        job_ids: one per response; none for a prediction that is not registered.
        external_id: of the registered prediction.
        sent_at: of the first request, in Unix seconds.
        view: the job as the API shows it.
    """

    case: Case
    job_ids: tuple[str, ...] = ()
    external_id: str | None = None
    sent_at: float = 0.0
    view: Body = field(default_factory=dict)
