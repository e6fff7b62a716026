"""
The script of a prediction: its behaviour and its faults, in `input["standin"]`. Every key has a default.

    {"duration_s": 0.3,              from creation to the end; starting, then processing, then `status`
     "status": "succeeded",          succeeded failed canceled aborted; "processing" never ends by itself
     "outputs": 3,                   number of files, 0 to 100
     "formats": ["png", "jpeg"],     used in turn: png jpeg jpeg_rotated webp avif gif, or the name of a file in the
                                     folder given with --pictures; default: that folder's files, else all six in turn
     "seed": 7,                      same seed and prompt, same files; default: derived from the prediction's id
     "shape": "list",                of `output`: list, string (the first file only), nested, data (data: URIs),
                                     text, null
     "webhook": "ok",                see WEBHOOKS
     "late_s": 5.0,                  delay of a "late" webhook
     "webhook_life_s": 60.0,         time from the first attempt of a terminal webhook to its last retry
     "output_life_s": 3600.0,        after the end; then outputs return 404 and the prediction `data_removed`
     "width_px": 640, "height_px": 480,  of generated pictures; default: four sizes in turn
     "submit": "ok",                 fault of the submission, see SUBMITS
     "submit_times": 0,              number of submissions with this model and input that get the fault, 0: all
     "submit_s": 0.0,                delay of the response to the submission
     "retry_after_s": 1.0,           Retry-After of a busy provider
     "faults": {"0": "429_once"}}    output number to its fault, see FAULTS

fal and OpenAI, which have no `input`, read it from "standin" in the body. Missing keys follow the input where the model
has the field (num_outputs, seed, width, height, output_format), then the model's own defaults (see `models`).

An unknown key, an unknown name or a value of the wrong type is rejected with 422. A failed prediction shows the first
half of its files as previews; they are served and must not be kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from simulation.provider import pictures

WEBHOOKS: Final[Mapping[str, str]] = {
    "ok": "sent at once, retried until a 2xx",
    "late": "the terminal webhook is sent `late_s` later",
    "double": "the terminal webhook is sent twice with one webhook-id",
    "double_new_id": "the terminal webhook is sent twice with two webhook-ids",
    "missing": "none is sent",
    "out_of_order": "a `processing` webhook follows the terminal one, even if the filter excludes it",
    "bad_signature_first": "the first attempt of the terminal webhook has a wrong signature, its retries are correct",
    "bad_signature_only": "every attempt has a wrong signature",
}
SUBMITS: Final[Mapping[str, str]] = {
    "ok": "created",
    "lost": "created; the connection is closed without a response",
    "500_after": "created; the response is 500",
    "no_id": "created; the response is a success without an id",
    "not_echoed": "created without the webhook URL, as if none had been sent",
    "500_before": "not created; 500",
    "busy": "not created; 429 with Retry-After",
    "no_credit": "not created; the provider's error for an empty account",
    "invalid": "not created; the provider's error for an invalid input",
}
STATUSES: Final = ("succeeded", "failed", "canceled", "aborted", "processing")
SHAPES: Final = ("list", "string", "nested", "data", "text", "null", "video")  # video: of fal's video models


@dataclass(frozen=True, slots=True)
class Transfer:
    """
    Behaviour of one request for an output.

    Args:
        mode: whole; cut (half of the body, then the connection is closed); reset (half, then RST); drip (the body in
            pieces over `seconds`); trickle (10 bytes per second without an end); chunked (no Content-Length); padded
            (zeros up to 60 MB); endless (zeros, chunked, without an end); error (`status`); redirect (to `target`).
        target: own (the same file under another path), loop, trap (a private port that records the request), metadata
            (169.254.169.254).
    """

    mode: str = "whole"
    status: int = 200
    target: str = ""
    seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class OutputFault:
    """A fault of an output: the expected result, the transfers in turn (the last repeats), its bytes and its URL."""

    expected: Literal["kept", "dead"]
    description: str
    transfers: tuple[Transfer, ...] = (Transfer(),)
    content: str = "whole"  # or half, noise, page, bomb, empty
    source: str = "own"  # host of the URL, or trap, foreign
    is_renewable: bool = False  # after a 404 from the URL, the next GET of the prediction returns a new URL


_WHOLE: Final = Transfer()
_404, _429, _500 = (Transfer("error", status) for status in (404, 429, 500))

NO_FAULT: Final = OutputFault("kept", "no fault")
FAULTS: Final[Mapping[str, OutputFault]] = {
    "429_once": OutputFault("kept", "429 with Retry-After: 1, then whole", (_429, _WHOLE)),
    "500_twice": OutputFault("kept", "500 twice, then whole", (_500, _500, _WHOLE)),
    "reset_once": OutputFault("kept", "connection reset within the body, then whole", (Transfer("reset"), _WHOLE)),
    "truncated_once": OutputFault("kept", "shorter than its Content-Length, then whole", (Transfer("cut"), _WHOLE)),
    "slow": OutputFault("kept", "whole, over 2 s", (Transfer("drip"),)),
    "slow_once": OutputFault("kept", "whole, over 5 s; then at once", (Transfer("drip", seconds=5.0), _WHOLE)),
    "chunked": OutputFault("kept", "whole, without a Content-Length", (Transfer("chunked"),)),
    "redirect": OutputFault("kept", "a redirect to the same host, then whole", (Transfer("redirect", 302, "own"),)),
    "gone_then_fresh": OutputFault("kept", "404, and a poll returns a new URL", (_404,), is_renewable=True),
    "404_always": OutputFault("dead", "404", (_404,)),
    "500_always": OutputFault("dead", "500", (_500,)),
    "truncated_always": OutputFault("dead", "shorter than its Content-Length", (Transfer("cut"),)),
    "slow_forever": OutputFault("dead", "10 bytes per second", (Transfer("trickle"),)),
    "too_large": OutputFault("dead", "60 MB", (Transfer("padded"),)),
    "endless": OutputFault("dead", "a chunked body without an end", (Transfer("endless"),)),
    "redirect_loop": OutputFault("dead", "redirects to itself", (Transfer("redirect", 302, "loop"),)),
    "private_redirect": OutputFault("dead", "redirects to a private port", (Transfer("redirect", 302, "trap"),)),
    "metadata_redirect": OutputFault("dead", "redirects to 169.254.169.254", (Transfer("redirect", 302, "metadata"),)),
    "private_url": OutputFault("dead", "the URL has a private port", source="trap"),
    "other_host": OutputFault("dead", "the URL has a foreign host", source="foreign"),
    "half_file": OutputFault("dead", "half a file, with the Content-Length of the half", content="half"),
    "corrupt": OutputFault("dead", "16 correct bytes, then noise", content="noise"),
    "web_page": OutputFault("dead", "an HTML page", content="page"),
    "bomb": OutputFault("dead", "a valid PNG of 300 megapixels", content="bomb"),
    "empty": OutputFault("dead", "no bytes", content="empty"),
}


class ScriptError(ValueError):
    """The script has an unknown key or an invalid value."""


def _check_known(name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise ValueError(f"{name!r} is not known; known are {', '.join(known)}")
    return name


def _one_of(names: Iterable[str]) -> AfterValidator:
    return AfterValidator(partial(_check_known, known=tuple(names)))


def _check_format(name: str, info: ValidationInfo) -> str:
    """`info.context`: names of the files in the folder of pictures."""
    known = (*pictures.FORMATS, *pictures.VIDEO_FORMATS, *pictures.FILE_FORMATS, *(info.context or ()))
    return _check_known(name, known)


_Seconds = Annotated[float, Field(ge=0, le=10**7)]
_Pixels = Annotated[int, Field(ge=0, le=4096)]
_Format = Annotated[str, AfterValidator(_check_format)]
_Index = Annotated[int, Field(ge=0, strict=False)]  # JSON has no keys but strings


class Script(BaseModel):
    """A validated script; the module's docstring explains the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    duration_s: _Seconds = 0.2
    status: Annotated[str, _one_of(STATUSES)] = "succeeded"
    outputs: Annotated[int, Field(ge=0, le=100)] = 1
    formats: Annotated[tuple[_Format, ...], Field(min_length=1, strict=False)] = pictures.FORMATS
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    shape: Annotated[str, _one_of(SHAPES)] = "list"
    webhook: Annotated[str, _one_of(WEBHOOKS)] = "ok"
    late_s: _Seconds = 5.0
    webhook_life_s: _Seconds = 60.0
    output_life_s: _Seconds = 3600.0
    width_px: _Pixels | None = None
    height_px: _Pixels | None = None
    submit: Annotated[str, _one_of(SUBMITS)] = "ok"
    submit_times: Annotated[int, Field(ge=0)] = 0
    submit_s: _Seconds = 0.0
    retry_after_s: _Seconds = 1.0
    faults: Mapping[_Index, Annotated[str, _one_of(FAULTS)]] = {}

    def output_fault(self, index: int) -> OutputFault:
        return FAULTS.get(self.faults.get(index, ""), NO_FAULT)

    @model_validator(mode="after")
    def _check_faults(self) -> Self:
        for index, name in self.faults.items():
            if index >= self.outputs:
                raise ValueError(f"faults names output {index}, but there are {self.outputs}")
            if self.shape == "data" and FAULTS[name].content == "whole":
                raise ValueError(f"{name} does not apply to a data: URI")
        return self


def parse_script(script: object, files: tuple[str, ...] = (), defaults: Mapping[str, Any] | None = None) -> Script:
    """
    Validate a script. Raises ScriptError.

    Args:
        script: `input["standin"]`, None for all defaults.
        files: names of the files in the folder of pictures.
        defaults: values of missing keys, in place of the general defaults.
    """
    if not isinstance(script, dict | None):
        raise ScriptError("standin must be an object")
    values = {"formats": files or pictures.FORMATS, **(defaults or {}), **(script or {})}
    try:
        return Script.model_validate(values, context=files)
    except ValidationError as error:
        first = error.errors()[0]
        raise ScriptError(f"{'.'.join(map(str, ('standin', *first['loc'])))}: {first['msg']}") from error
