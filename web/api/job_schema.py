"""What `POST /v1/jobs` takes, and what is wrong with what it was given."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from moorage import model
from moorage.settings import Settings
from moorage.text import is_storable, to_storable
from tasks.predictions import references
from tasks.predictions.references import ReferenceGone
from web.http import validation
from web.http.validation import Name, ProjectId, SceneName, Storable

MAX_ENTRIES: Final = 8
MAX_DEADLINE_SECONDS: Final = 7 * 86400
MAX_KEY_CHARS: Final = 255
AUTO_MODEL: Final = "auto"  # as a model: one is chosen by what it accepts
MAPPABLE_FIELDS: Final = (
    "prompt",
    "style",
    "room_type",
    "mode",
    "variants",
)  # what `map` picks beside the job's own input


def _check_object(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise ValueError("is no object")
    if value == {}:
        raise ValueError("is empty: say what the model is to make, or leave the field out")
    return value


Seconds = Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)]
ModelInput = Annotated[dict[str, Any], Field(min_length=1), BeforeValidator(_check_object)]
InputMap = Annotated[dict[Name, Name], Field(min_length=1, max_length=100), BeforeValidator(_check_object)]


class ChainEntry(BaseModel):
    """One model to try: the next one is started when it brings no files."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    provider: Annotated[str, Field(max_length=60), Storable]
    model: Name = Field(description='as the provider names it; "auto": one that accepts the input')
    input: ModelInput | None = Field(None, description="as the model takes it; left out, the job's")
    map: InputMap | None = Field(None, description="the model's name: the job's name, of its input or its fields")
    seconds: Seconds | None = Field(None, description="how long it is waited for")


class JobCreate(BaseModel):
    """A job: what is to be generated, by which models in turn, and where its files belong."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    owner: Name
    kind: Literal["image", "video"] = "image"
    chain: Annotated[list[ChainEntry], Field(min_length=1, max_length=MAX_ENTRIES)]
    input: ModelInput | None = Field(None, description="of every entry that has none of its own")
    mode: Name | None = None
    room_type: Name | None = None
    style: Name | None = None
    prompt: Annotated[str, Field(max_length=20_000), Storable] | None = None
    variants: Annotated[int, Field(ge=1, le=100)] | None = None
    project_id: ProjectId | None = None
    scene: SceneName = None
    policy: Literal["keep", "discard"] | None = None  # of partial results
    placeholder: bool = False
    deadline_seconds: Seconds | None = None


def parse_job(body: dict[str, Any]) -> JobCreate:
    """
    Return what a request's body asks for.

    Raises:
        Problem: 422 with every field that is wrong.
    """
    errors = [validation.unknown_field(name, JobCreate) for name in validation.unstorable_names(body)]
    if body.get("scene") is not None and body.get("project_id") is None:
        errors.append({"field": "scene", "message": "names a place in a project: write project_id too, or no scene"})
    errors += itertools.islice(_of_inputs(body), validation.MAX_ERRORS)
    try:
        wished = JobCreate.model_validate({name: value for name, value in body.items() if is_storable(name)})
    except ValidationError as error:
        raise validation.invalid_fields(
            [*(_explain(item) for item in validation.limited_errors(error)), *errors]
        ) from error
    if errors:
        raise validation.invalid_fields(errors)
    return wished


def build_chain(wished: JobCreate, settings: Settings) -> tuple[model.FallbackEntry, ...]:
    """
    Return a job's chain with the input of every entry.

    Raises:
        Problem: 422 for an entry without input, or whose `map` names what the job does not have.
    """
    usual = settings.video_seconds if wished.kind == "video" else settings.image_seconds
    errors: list[dict[str, str]] = []
    entries = tuple(
        model.FallbackEntry(
            provider=entry.provider,
            model=entry.model,
            input=_input(wished, entry, f"chain[{n}]", errors),
            seconds=entry.seconds or usual,
        )
        for n, entry in enumerate(wished.chain)
    )
    if not errors and validation.json_size_bytes([entry.input for entry in entries]) > validation.MAX_CHAIN_BYTES:
        large = f"holds more than {validation.MAX_CHAIN_BYTES} bytes of input: upload files, and name them in it"
        errors.append({"field": "chain", "message": large})
    if errors:
        raise validation.invalid_fields(errors)
    return entries


def build_request(
    wished: JobCreate, entries: tuple[model.FallbackEntry, ...], settings: Settings, key: str | None, sha: str
) -> model.JobRequest:
    """Return the order; `sha` is the hash of the request, kept where there is a key."""
    fields = wished.model_dump(exclude={"policy", "chain", "input", "deadline_seconds"})
    return model.JobRequest(
        **fields,
        fallback_chain=entries,
        partial=wished.policy or settings.partial,
        deadline_seconds=wished.deadline_seconds or settings.job_deadline_seconds,
        idempotency_key=key,
        request_sha256=sha if key else None,
    )


def request_hash(body: Mapping[str, Any], files: list[str]) -> str:
    """Return the hash of a body and of its files, whatever the order of names and the white space between them."""
    text = json.dumps([body, files], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def parse_idempotency_key(values: list[str]) -> str | None:
    """
    Return the Idempotency-Key of a request, None without the header.

    Raises:
        Problem: 422 when it is no key.
    """
    if not values:
        return None
    if len(values) > 1:
        raise validation.invalid_field("Idempotency-Key", "is given twice: send one")
    key = values[0].strip(" ")
    if not 1 <= len(key) <= MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise validation.invalid_field(
            "Idempotency-Key", f"is no key: send 1 to {MAX_KEY_CHARS} printable ASCII characters"
        )
    return key


def _of_inputs(body: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield what is wrong inside of the inputs, which hold what no model of ours knows."""
    yield from _of_input(body.get("input"), "input")
    entries = body.get("chain")
    for n, entry in enumerate(entries[:MAX_ENTRIES] if isinstance(entries, list) else []):
        yield from _of_input(entry.get("input") if isinstance(entry, dict) else None, f"chain[{n}].input")


def _of_input(value: Any, field: str) -> Iterator[dict[str, str]]:
    if not isinstance(value, dict):
        return
    if len(value) == 1 and next(iter(value)) in ("upload", "variant"):
        yield validation.field_error(field, "is a file itself: write the file under the model's name for it")
        return
    if validation.has_too_many_values(value):
        yield validation.field_error(field, f"holds more than {validation.MAX_VALUES} values: no model takes so many")
        return
    found = list(itertools.islice(validation.find_value_errors(value, field), validation.MAX_ERRORS))
    yield from found
    if not found:
        try:
            references.find_references(value)
        except ReferenceGone as error:
            place, _, message = str(error).partition(": ")
            yield validation.field_error(f"{field}.{place}", message)


def input_field(wished: JobCreate, n: int) -> str:
    """Return where the input of an entry was written."""
    entry = wished.chain[n]
    return f"chain[{n}].input" if entry.input is not None or entry.map is not None else "input"


def _input(wished: JobCreate, entry: ChainEntry, field: str, errors: list[dict[str, str]]) -> dict[str, Any]:
    if entry.input is None and entry.map is None and wished.input is None:
        errors.append({"field": f"{field}.input", "message": "is missing: write one here, or one for the whole job"})
    made = dict(entry.input or ({} if entry.map else wished.input or {}))
    known = {name: value for name in MAPPABLE_FIELDS if (value := getattr(wished, name)) is not None} | (
        wished.input or {}
    )
    for theirs, ours in (entry.map or {}).items():
        if ours in known:
            made[theirs] = known[ours]
        else:
            errors.append({"field": f"{field}.map.{theirs}", "message": _unknown(ours, list(known))})
    return made


def _unknown(name: str, known: list[str]) -> str:
    has = f"the job has {', '.join(known)}" if known else "it has none"
    return to_storable(f"names {name!r}, which this job does not have: {has}", 500)


def _explain(item: ErrorDetails) -> dict[str, str]:
    loc = item["loc"]
    in_entry = loc[:1] == ("chain",) and len(loc) > 2
    last = ErrorDetails(**{**item, "loc": loc[-1:]})
    told = validation.explain_error(last, ChainEntry if in_entry else JobCreate)
    if item["type"] in ("model_type", "list_type"):
        told["message"] = "is no object" if item["type"] == "model_type" else "is no list"
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return {"field": to_storable(path.removeprefix("."), 200), "message": told["message"]}
