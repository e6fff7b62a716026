"""What the demo does: jobs with real pictures, and every fault that providers are known for."""

from dataclasses import dataclass
from typing import Any, Final, Literal

# What differs from the defaults, and why; printed by the demo. Lease, heartbeat, guard and limits stay as they are.
SETTINGS: Final = {
    "MOORAGE_DEV_POLL_FIRST_SECONDS": ("8", "a webhook that never comes is polled for after 8 s instead of 60 s"),
    "MOORAGE_UNMATCHED_SECONDS": ("20", "a webhook nobody registered becomes a dead letter after 20 s, not 24 h"),
    "MOORAGE_DEV_WAIT_CAP_SECONDS": ("10", "no retry waits longer than 10 s instead of 300 s"),
}

Registered = Literal["at once", "late", "never"]


@dataclass(frozen=True, slots=True)
class Case:
    """One job: what is asked of the stand-in, when it is registered, and how it must end."""

    name: str
    asked: dict[str, Any]
    state: str | None = "succeeded"  # the job's, None: there is no job
    registered: Registered = "at once"
    partial: Literal["keep", "discard"] = "keep"
    project: str | None = None
    scene: str | int | None = None


def cases() -> list[Case]:
    """Return the demo's jobs: 34 of them, 80 files named by the provider."""
    return [*_plain(), *_webhooks(), *_downloads(), *_refused(), *_ends()]


def _asked(outputs: int = 2, **standin: Any) -> dict[str, Any]:
    return {"prompt": "a boat at its mooring", "standin": {"duration_s": 0.5, "outputs": outputs, **standin}}


def _faults(outputs: int, **faults: str) -> dict[str, Any]:
    return _asked(outputs, faults={number.removeprefix("n"): fault for number, fault in faults.items()})


def _plain() -> list[Case]:
    scenes: list[tuple[str, str | int]] = [("living", 1), ("living", 2), ("living", "3"), ("garden", "pond")]
    rooms = [
        Case(f"{project}, scene {scene}", _asked(4, seed=number), project=project, scene=scene)
        for number, (project, scene) in enumerate(scenes)
    ]
    shapes = [
        Case("one URL as text", _asked(1, shape="string")),
        Case("files in a nested answer", _asked(3, shape="nested")),
        Case("files inside the answer (data:)", _asked(2, shape="data")),
    ]
    return rooms + shapes


def _webhooks() -> list[Case]:
    return [
        Case("webhook comes 5 s late", _asked(webhook="late", late_s=5.0)),
        Case("webhook comes twice", _asked(webhook="double")),
        Case("two webhooks for one completion", _asked(webhook="double_new_id")),
        Case("webhook never comes", _asked(webhook="missing")),
        Case("processing after succeeded", _asked(webhook="out_of_order")),
        Case("first try wrongly signed", _asked(webhook="bad_signature_first")),
        Case("always wrongly signed", _asked(webhook="bad_signature_only")),
        Case("webhook before registration", _asked(duration_s=0.1), registered="late"),
        Case("nobody registers it", _asked(), state=None, registered="never"),
    ]


def _downloads() -> list[Case]:
    return [
        Case("429, then served", _faults(3, n0="429_once")),
        Case("500 twice, then served", _faults(3, n1="500_twice")),
        Case("cut, then whole", _faults(3, n2="truncated_once")),
        Case("connection reset, then whole", _faults(3, n0="reset_once")),
        Case("slow, without length, redirected", _faults(3, n0="slow", n1="chunked", n2="redirect")),
        Case("URL dead, a poll brings another", _faults(2, n1="gone_then_fresh")),
        Case("one of three is gone", _faults(3, n1="404_always"), state="partial"),
        Case("one is gone, all or nothing", _faults(3, n1="404_always"), state="failed", partial="discard"),
    ]


def _refused() -> list[Case]:
    return [
        Case("a web page for a picture", _faults(2, n0="web_page"), state="partial"),
        Case("corrupt, half a file, a bomb", _faults(4, n0="corrupt", n1="half_file", n2="bomb"), state="partial"),
        Case("60 MB for a picture", _faults(2, n0="too_large"), state="partial"),
        Case("redirected to a private address", _faults(2, n0="private_redirect"), state="partial"),
        Case("redirected to cloud metadata", _faults(2, n0="metadata_redirect"), state="partial"),
        Case("a private address, a foreign host", _faults(3, n0="private_url", n1="other_host"), state="partial"),
    ]


def _ends() -> list[Case]:
    return [
        Case("the provider fails", _asked(2, status="failed"), state="failed"),
        Case("the provider aborts", _asked(2, status="aborted"), state="failed"),
        Case("cancelled at the provider", _asked(2, status="canceled"), state="failed"),
        Case("success without files", _asked(0, shape="null"), state="failed"),
    ]
