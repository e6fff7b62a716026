"""Cases of demo and drill: job requests, and predictions to register, with their expected results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

MODELS: Final = {"replicate": "standin/pictures", "fal": "standin/pictures", "openai": "gpt-image-1"}

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a fallback chain."""

    provider: str
    script: Mapping[str, Any] = field(default_factory=dict)  # for the stand-in
    seconds: float = 60.0  # its time limit
    failure: str | None = None  # the reason why it yields no files within its time limit
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

    The last three fields are expected results; the number of files that readers see is checked with `providers`.
    """

    name: str  # unique; the Idempotency-Key of a job request
    input: Body | None = None  # of the prediction to register; None for a job request
    provider: str = "replicate"  # of that prediction
    chain: tuple[Entry, ...] = ()
    registration: Literal["at once", "late", "never"] = "at once"  # "late": after the webhook
    policy: Literal["keep", "discard"] = "keep"  # for partial results
    kind: Literal["image", "video"] = "image"
    project: str | None = None
    scene: str | int | None = None
    placeholder: bool = False
    source: Literal["upload", "kept output"] | None = None  # of the input file `image` of every entry
    action: Literal["cancel", "retry"] | None = None  # once a prediction is running, or the job has failed
    is_repeated: bool = False  # the request is sent twice
    deadline_seconds: float | None = None
    state: str | None = "succeeded"  # None: not exactly known
    providers: tuple[str, ...] | None = None  # of the job's predictions; None: not checked
    files: int = 1

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
        return {"provider": self.provider, "external_id": external_id, "prompt": prompt, **self._common()}

    def _common(self) -> Body:
        placement = {} if self.project is None else {"project_id": self.project, "scene": self.scene}
        return {"kind": self.kind, "policy": self.policy, **placement}


@dataclass(slots=True)
class CaseRun:
    """A case whose request was accepted."""

    case: Case
    job_ids: tuple[str, ...] = ()  # one per response; none for a prediction that is not registered
    external_id: str | None = None  # of the registered prediction
    view: Body = field(default_factory=dict)  # the job as the API shows it
