"""
What can be asked of the stand-in, prediction by prediction, in `input["standin"]`. Every key has a default.

    {"duration_s": 0.3,              from create to the end; starting, then processing, then `status`
     "status": "succeeded",          succeeded failed canceled aborted; "processing" never ends by itself
     "outputs": 3,                   number of files, 0 to 100
     "formats": ["png", "jpeg"],     used in turn: png jpeg jpeg_rotated webp avif gif, or the name of a file in the
                                     folder given with --pictures; default: that folder's files, else all six in turn
     "seed": 7,                      same seed, same pictures; default: drawn from the prediction's id
     "shape": "list",                of `output`: list, string (the first file only), nested, data (data: URIs),
                                     text, null
     "webhook": "ok",                see WEBHOOKS
     "late_s": 5.0,                  how late "late" is
     "webhook_life_s": 60.0,         the last retry of a terminal webhook comes this long after the first attempt
     "output_life_s": 3600.0,        after the end; then outputs answer 404 and the prediction `data_removed`
     "width_px": 640, "height_px": 480,  of made pictures; default: four sizes in turn
     "submit": "ok",                 what happens to the order itself, see SUBMITS
     "submit_times": 0,              how many orders with this model and input suffer it, 0: all of them
     "submit_s": 0.0,                how long the answer to the order takes
     "retry_after_s": 1.0,           what a busy provider asks for
     "faults": {"0": "429_once"}}    output number to its fault, see FAULTS

fal and OpenAI, which have no `input`, take it as "standin" in the body. What is left out follows the input where the
model has it (num_outputs, seed, width, height, output_format), then the model's own nature (see `models`).

An unknown key, name or a value of the wrong type is refused with 422. A failed prediction shows the first half of its
files as previews; they are served and must not be kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from simulation.provider import pictures

Expected = Literal["kept", "dead"]
Content = Literal["whole", "half", "noise", "page", "bomb", "empty"]
Source = Literal["own", "trap", "foreign"]

WEBHOOKS: Final[Mapping[str, str]] = {
    "ok": "sent at once, retried until a 2xx",
    "late": "the terminal one comes `late_s` later",
    "double": "the terminal one is sent twice under one webhook-id",
    "double_new_id": "the terminal one is sent as two webhooks with two webhook-ids",
    "missing": "none is sent",
    "out_of_order": "a `processing` webhook follows the terminal one, whatever the filter says",
    "bad_signature_first": "the first attempt of the terminal one is wrongly signed, its retries are right",
    "bad_signature_only": "every attempt is wrongly signed",
}
SUBMITS: Final[Mapping[str, str]] = {
    "ok": "taken",
    "lost": "made; the connection is closed without an answer",
    "500_after": "made; the answer is 500",
    "no_id": "made; the answer is a success that names nothing",
    "not_echoed": "made without the webhook address, as if none had been sent",
    "500_before": "not made; 500",
    "busy": "not made; 429 with Retry-After",
    "no_credit": "not made; as the provider says that the money is gone",
    "invalid": "not made; as the provider refuses an input",
}
STATUSES: Final = ("succeeded", "failed", "canceled", "aborted", "processing")
_LIMITS: Final = {"outputs": 100, "submit_times": 1000, "width_px": 4096, "height_px": 4096}
SHAPES: Final = ("list", "string", "nested", "data", "text", "null")


@dataclass(frozen=True, slots=True)
class Act:
    """
    How one request for an output is answered.

    Args:
        how: whole; cut (half the body, then the connection is closed); reset (half, then RST); drip (the body spread
            over `seconds`); trickle (10 bytes a second, for ever); chunked (no Content-Length); padded (zeros up to
            60 MB); endless (zeros, chunked, for ever); error (a problem of `status`); redirect (to `to`).
        to: own (the same file under another path), loop, trap (a private port that records the visit), metadata
            (169.254.169.254).
    """

    how: str = "whole"
    status: int = 200
    to: str = ""
    seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What an output suffers: its bytes, its URL, the answers in turn (the last repeats), and what must come of it."""

    expected: Expected
    why: str
    acts: tuple[Act, ...] = (Act(),)
    content: Content = "whole"
    source: Source = "own"
    renewed: bool = False  # once the URL answered 404, the next GET of the prediction names a fresh one


_WHOLE: Final = Act()
_GONE: Final = Act("error", 404)
_BUSY: Final = Act("error", 429)
_BROKEN: Final = Act("error", 500)

NONE: Final = Fault("kept", "no fault")
FAULTS: Final[Mapping[str, Fault]] = {
    "429_once": Fault("kept", "429 with Retry-After: 1, then whole", (_BUSY, _WHOLE)),
    "500_twice": Fault("kept", "500 twice, then whole", (_BROKEN, _BROKEN, _WHOLE)),
    "reset_once": Fault("kept", "connection reset in mid-body, then whole", (Act("reset"), _WHOLE)),
    "truncated_once": Fault("kept", "shorter than its Content-Length, then whole", (Act("cut"), _WHOLE)),
    "slow": Fault("kept", "whole, spread over 2 s", (Act("drip"),)),
    "slow_once": Fault("kept", "whole, spread over 5 s; then whole at once", (Act("drip", seconds=5.0), _WHOLE)),
    "chunked": Fault("kept", "whole, without a Content-Length", (Act("chunked"),)),
    "redirect": Fault("kept", "a redirect to the same host, then whole", (Act("redirect", 302, "own"),)),
    "gone_then_fresh": Fault("kept", "404, and a poll names a fresh URL", (_GONE,), renewed=True),
    "404_always": Fault("dead", "404", (_GONE,)),
    "500_always": Fault("dead", "500", (_BROKEN,)),
    "truncated_always": Fault("dead", "shorter than its Content-Length", (Act("cut"),)),
    "slow_forever": Fault("dead", "10 bytes a second", (Act("trickle"),)),
    "too_large": Fault("dead", "60 MB", (Act("padded"),)),
    "endless": Fault("dead", "a chunked body without an end", (Act("endless"),)),
    "redirect_loop": Fault("dead", "redirects to itself", (Act("redirect", 302, "loop"),)),
    "private_redirect": Fault("dead", "redirects to a private port", (Act("redirect", 302, "trap"),)),
    "metadata_redirect": Fault("dead", "redirects to 169.254.169.254", (Act("redirect", 302, "metadata"),)),
    "private_url": Fault("dead", "the URL names a private port", source="trap"),
    "other_host": Fault("dead", "the URL names a foreign host", source="foreign"),
    "half_file": Fault("dead", "half a file, with the Content-Length of the half", content="half"),
    "corrupt": Fault("dead", "16 right bytes, then noise", content="noise"),
    "web_page": Fault("dead", "an HTML page", content="page"),
    "bomb": Fault("dead", "a real PNG of 300 megapixels", content="bomb"),
    "empty": Fault("dead", "no bytes", content="empty"),
}


class PlanError(ValueError):
    """The request asks for something that is not in the vocabulary; the message says what."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One prediction's script, checked; the fields are the keys of the module's docstring."""

    duration_s: float = 0.2
    status: str = "succeeded"
    outputs: int = 1
    formats: tuple[str, ...] = pictures.KINDS
    seed: int | None = None
    shape: str = "list"
    webhook: str = "ok"
    late_s: float = 5.0
    webhook_life_s: float = 60.0
    output_life_s: float = 3600.0
    width_px: int | None = None
    height_px: int | None = None
    submit: str = "ok"
    submit_times: int = 0
    submit_s: float = 0.0
    retry_after_s: float = 1.0
    faults: Mapping[int, str] = field(default_factory=dict)

    def fault(self, index: int) -> Fault:
        """Return the fault of an output, NONE when it has none."""
        name = self.faults.get(index)
        return FAULTS[name] if name else NONE


def plan(asked: object, files: tuple[str, ...] = (), nature: Mapping[str, Any] | None = None) -> Plan:
    """
    Return the checked plan.

    Args:
        asked: `input["standin"]`, None for all defaults.
        files: names of the files in the folder of pictures.
        nature: what holds for a key that `asked` leaves out, in place of the default.

    Raises:
        PlanError: a key, a name or a value is not in the vocabulary.
    """
    given = _object(asked if asked is not None else {}, "standin")
    unknown = sorted(set(given) - set(Plan.__dataclass_fields__))
    if unknown:
        raise PlanError(f"standin.{unknown[0]} is not known; known are {', '.join(Plan.__dataclass_fields__)}")
    checked: dict[str, Any] = {"formats": files or pictures.KINDS, **(nature or {})}
    checked |= {name: _value(name, value, files) for name, value in given.items()}
    result = Plan(**checked)
    _check_faults(result)
    return result


def _value(name: str, value: object, files: tuple[str, ...]) -> Any:
    choices = {"status": STATUSES, "shape": SHAPES, "webhook": tuple(WEBHOOKS), "submit": tuple(SUBMITS)}
    if name in choices:
        return _choice(value, choices[name], name)
    if name.endswith("_s"):
        return _number(value, name)
    if name in _LIMITS:
        return _count(value, name, _LIMITS[name])
    if name == "seed":
        return None if value is None else _count(value, name, 2**63)
    if name == "formats":
        if not isinstance(value, list) or not value:
            raise PlanError("standin.formats must be a list of at least one name")
        return tuple(_choice(item, (*pictures.KINDS, *pictures.VIDEOS, *files), "formats") for item in value)
    return {_index(key): _choice(item, tuple(FAULTS), f"faults[{key}]") for key, item in _object(value, name).items()}


def _check_faults(result: Plan) -> None:
    for index, name in result.faults.items():
        if index >= result.outputs:
            raise PlanError(f"standin.faults names output {index}, but there are {result.outputs}")
        if result.shape == "data" and FAULTS[name].content == "whole":
            raise PlanError(f"standin.faults[{index}]: a data: URI cannot suffer {name}")


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{name} must be an object")
    return value


def _choice(value: object, known: tuple[str, ...], name: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise PlanError(f"standin.{name}: {value!r} is not known; known are {', '.join(known)}")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10**7:
        raise PlanError(f"standin.{name} must be a number of seconds, 0 or more")
    return float(value)


def _count(value: object, name: str, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise PlanError(f"standin.{name} must be a whole number from 0 to {limit}")
    return value


def _index(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise PlanError(f"standin.faults: {key!r} is not the number of an output")
    return int(key)
