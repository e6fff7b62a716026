"""The cases of the demo: jobs with real pictures, and the faults that providers are known for."""

from typing import Any, Final

from simulation.cases import Body, Case, Entry

# Settings that differ from the defaults, with the reason, which the demo prints. Guards keep their defaults.
SETTINGS: Final = {
    "MOORAGE_DEV_POLL_FIRST_SECONDS": ("8", "a missing webhook is polled for after 8 s instead of 60 s"),
    "MOORAGE_UNMATCHED_SECONDS": ("20", "a webhook without a registration becomes a dead letter after 20 s, not 24 h"),
    "MOORAGE_IMAGE_MAX_BYTES": ("50000000", "an image of 60 MB is too large; 200 MB are accepted otherwise"),
    "MOORAGE_DEV_WAIT_CAP_SECONDS": ("10", "no retry waits longer than 10 s instead of 300 s"),
}
PROJECT: Final = "film"
SCENES: Final = ("harbour", "pier", "quay")


def registered_cases() -> list[Case]:
    """Return the predictions that the application starts: 42 of them, with 90 files."""
    return [*_plain(), *_webhooks(), *_downloads(), *_rejected_files(), *_ends(), *_declared()]


def job_requests() -> list[Case]:
    return [*_fallback_chains(), *_single_entries()]


def follow_up_requests() -> list[Case]:
    """Return the job request that uses an output of the last one of `job_requests`."""
    chain = (Entry("replicate", model="auto"),)
    return [Case("video of that picture", chain=chain, providers=("replicate",), source="kept output", kind="video")]


def _input(outputs: int = 2, **script: Any) -> Body:
    return {"prompt": "a boat at its mooring", "standin": {"duration_s": 0.5, "outputs": outputs, **script}}


def _with_faults(outputs: int, **faults: str) -> Body:
    return _input(outputs, faults={number.removeprefix("n"): fault for number, fault in faults.items()})


def _plain() -> list[Case]:
    scenes: list[tuple[str, str | int]] = [("living", 1), ("living", 2), ("living", "3"), ("garden", "pond")]
    rooms = [
        Case(f"{project}, scene {scene}", _input(4, seed=number), project=project, scene=scene)
        for number, (project, scene) in enumerate(scenes)
    ]
    shapes = [
        Case("output is one URL", _input(1, shape="string")),
        Case("output is nested", _input(3, shape="nested")),
        Case("output is inline (data:)", _input(2, shape="data")),
    ]
    return rooms + shapes


def _webhooks() -> list[Case]:
    return [
        Case("webhook is 5 s late", _input(webhook="late", late_s=5.0)),
        Case("webhook is sent twice", _input(webhook="double")),
        Case("two webhooks for one completion", _input(webhook="double_new_id")),
        Case("webhook is missing", _input(webhook="missing")),
        Case("processing after succeeded", _input(webhook="out_of_order")),
        Case("first attempt has a wrong signature", _input(webhook="bad_signature_first")),
        Case("every attempt has a wrong signature", _input(webhook="bad_signature_only")),
        Case("webhook before registration", _input(duration_s=0.1), registration="late"),
        Case("never registered", _input(), state=None, registration="never"),
    ]


def _downloads() -> list[Case]:
    return [
        Case("429, then served", _with_faults(3, n0="429_once")),
        Case("500 twice, then served", _with_faults(3, n1="500_twice")),
        Case("truncated, then whole", _with_faults(3, n2="truncated_once")),
        Case("connection reset, then whole", _with_faults(3, n0="reset_once")),
        Case("slow, without length, redirected", _with_faults(3, n0="slow", n1="chunked", n2="redirect")),
        Case("URL is dead, a poll returns another", _with_faults(2, n1="gone_then_fresh")),
        Case("one of three is gone", _with_faults(3, n1="404_always"), state="partial"),
        Case("one is gone, policy discard", _with_faults(3, n1="404_always"), state="failed", policy="discard"),
    ]


def _rejected_files() -> list[Case]:
    invalid = _with_faults(4, n0="corrupt", n1="half_file", n2="bomb")
    hosts = _with_faults(3, n0="private_url", n1="other_host")
    return [
        Case("web page instead of a picture", _with_faults(2, n0="web_page"), state="partial"),
        Case("corrupt, half a file, a bomb", invalid, state="partial"),
        Case("picture of 60 MB", _with_faults(2, n0="too_large"), state="partial"),
        Case("redirect to a private address", _with_faults(2, n0="private_redirect"), state="partial"),
        Case("redirect to cloud metadata", _with_faults(2, n0="metadata_redirect"), state="partial"),
        Case("private address, foreign host", hosts, state="partial"),
    ]


def _ends() -> list[Case]:
    return [
        Case("provider fails", _input(2, status="failed"), state="failed"),
        Case("provider aborts", _input(2, status="aborted"), state="failed"),
        Case("cancelled at the provider", _input(2, status="canceled"), state="failed"),
        Case("success without files", _input(0, shape="null"), state="failed"),
    ]


def _declared() -> list[Case]:
    """Return predictions of providers that exist only in a TOML file."""
    hosts = _with_faults(2, n1="other_host")
    return [
        Case("declared: webhook is sent twice", _input(webhook="double"), provider="atelier"),
        Case("declared: webhook is missing", _input(webhook="missing"), provider="atelier"),
        Case("declared: forged, then right", _input(1, webhook="bad_signature_first"), provider="atelier"),
        Case("declared: a file on a foreign host", hosts, provider="atelier"),
        *(
            Case(f"{name}: {webhook}", _input(1, webhook=webhook), provider=name)
            for name, webhook in (("bfl", "missing"), ("gemini", "double"), ("ideogram", "late"), ("luma", "ok"))
        ),
    ]


def _entry(provider: str, seconds: float = 60.0, failure: str | None = None, **script: Any) -> Entry:
    return Entry(provider, {"duration_s": 0.5, "formats": ["png"], **script}, seconds, failure)


def _fallback_chains() -> list[Case]:
    too_slow = _entry("replicate", 2.0, "slow", duration_s=14.0, seed=2)
    never_ends = _entry("replicate", 1.0, "slow", status="processing")
    fails = _entry("fal", failure="failed", status="failed")
    rejected = _entry("openai", failure="no_credit", submit="no_credit")
    with_placeholder: Any = {"placeholder": True, "project": PROJECT}
    return [
        Case(
            "times out, fails, succeeds", chain=(never_ends, fails, _entry("openai", outputs=2)),
            providers=("replicate", "fal", "openai"), files=2, project=PROJECT, scene=SCENES[0],
        ),
        Case(
            "all fail: placeholder", chain=(fails, rejected), providers=("fal", "openai", "placeholder"),
            state="partial", scene=SCENES[1], **with_placeholder,
        ),
        Case(
            "placeholder until a late success", chain=(too_slow, fails),
            providers=("replicate", "fal", "placeholder"), scene=SCENES[2], **with_placeholder,
        ),
        Case("all fail, no placeholder", chain=(fails, rejected), providers=("fal", "openai"), state="failed", files=0),
    ]  # fmt: skip


def _single_entries() -> list[Case]:
    lost, busy = _entry("replicate", submit="lost"), _entry("fal", submit="busy", submit_times=2)
    long, no_credit = _entry("replicate", 120.0, duration_s=100.0), _entry("fal", submit="no_credit", submit_times=1)
    bfl = Entry("bfl", {"submit": "busy", "submit_times": 1}, model="flux-2-pro")
    two_files = _entry("replicate", outputs=2)
    return [
        Case("response is lost", chain=(lost,), providers=("replicate",)),
        Case("provider is busy twice", chain=(busy,), providers=("fal",)),
        Case("submitted to a declared provider", chain=(bfl,), providers=("bfl",)),
        Case("cancelled", chain=(long,), providers=("replicate",), state="cancelled", files=0, action="cancel"),
        Case("fails, then retried", chain=(no_credit,), providers=("fal", "fal"), action="retry"),
        Case("from an upload", chain=(two_files,), providers=("replicate",), files=2, source="upload"),
        Case("edit of an upload", chain=(_entry("openai"),), providers=("openai",), source="upload"),
    ]
