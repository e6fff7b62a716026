"""Request schema of POST /v1/jobs: parses the body into entries with complete inputs and their references."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import Header
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from moorage.model import FallbackEntry, JobRequest, SceneRef
from moorage.settings import Settings
from providers.base import Provider
from tasks.predictions import references
from tasks.predictions.references import Reference, ReferenceGone
from web.http import validation
from web.http.problems import FieldError
from web.http.validation import Body, Name, ProjectId, SceneName, Storable, field_error

MAX_ENTRIES: Final = 8
MAX_DEADLINE_SECONDS: Final = 7 * 86400
MAX_KEY_CHARS: Final = 255
MAX_METADATA: Final = 16
MAX_METADATA_CHARS: Final = 500
AUTO_MODEL: Final = "auto"  # the model is chosen by what it accepts
MAX_PROMPT_CHARS: Final = 20_000
MAPPABLE_FIELDS: Final = ("prompt", "style", "room_type", "mode", "variants")  # for `map`, beside the job's input


def _check_object(value: Any) -> Any:
    if value is not None and not isinstance(value, dict):
        raise ValueError("is not an object")
    if value == {}:
        raise ValueError("is empty: give the model's input or omit the field")
    return value


def _check_input(value: Any) -> Any:
    """Validate a model input; all nested errors are reported in the context of one error."""
    _check_object(value)
    errors = list(itertools.islice(_find_input_errors(value), validation.MAX_ERRORS)) if value else []
    if errors:
        raise PydanticCustomError(validation.INPUT_ERROR, "has invalid values", {"errors": errors})
    return value


def _find_input_errors(value: dict[str, Any]) -> Iterator[FieldError]:
    """Yield the errors of an input, each with its path in the input: ".images[0]"."""
    if len(value) == 1 and next(iter(value)) in ("upload", "variant"):
        yield field_error("", "is itself a file reference: give it under the model's field name")
    elif validation.has_too_many_values(value):
        yield field_error("", f"holds more than {validation.MAX_VALUES} values")
    elif errors := list(itertools.islice(validation.find_value_errors(value, ""), validation.MAX_ERRORS)):
        yield from errors
    else:
        try:
            references.find_references(value)
        except ReferenceGone as error:
            yield field_error(f".{error.facts['path']}", error.facts["problem"])


Seconds = Annotated[float, Field(ge=1, le=MAX_DEADLINE_SECONDS)]
ModelInput = Annotated[dict[str, Any], Field(min_length=1), BeforeValidator(_check_input)]
InputMap = Annotated[dict[Name, Name], Field(min_length=1, max_length=100), BeforeValidator(_check_object)]


class ChainEntry(Body):
    """One entry of the fallback chain: the next one is started when it yields no files."""

    provider: Annotated[str, Field(max_length=60), Storable]
    model: Name = Field(description='as the provider names it; "auto": one that accepts the input')
    input: ModelInput | None = Field(None, description="as the model accepts it; if omitted, the job's")
    map: InputMap | None = Field(None, description="model field: job field, of its input or one of its own fields")
    seconds: Seconds | None = Field(None, description="time limit of this entry")


@dataclass(frozen=True, slots=True)
class ParsedEntry:
    entry: FallbackEntry
    input_field: str  # where the input was given, "input" or "chain[0].input"
    references: Sequence[Reference]


Metadata = Annotated[
    dict[Name, Annotated[str, Field(max_length=MAX_METADATA_CHARS), Storable]], Field(max_length=MAX_METADATA)
]


class ResultFields(Body):
    """What a job generates, and where its files belong."""

    owner: Name
    mode: Name | None = None
    room_type: Name | None = None
    style: Name | None = None
    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARS), Storable] | None = Field(
        None, description="if omitted, `prompt` of the first input"
    )
    project_id: ProjectId | None = None
    scene: SceneName | None = None
    policy: Literal["keep", "discard"] | None = None  # of partial results
    notify_url: Name | None = Field(None, description="one of MOORAGE_NOTIFY_URL; if omitted, the first")
    metadata: Metadata = Field({}, description="the application's own; repeated in responses and notifications")

    def build_fields(self, settings: Settings, *not_stored: str) -> dict[str, Any]:
        """Return the fields of the job to store. Raises Problem: 422, the operator does not allow the URL."""
        if self.notify_url is not None and self.notify_url not in settings.notify_urls:
            raise validation.invalid_field("notify_url", "is not one of MOORAGE_NOTIFY_URL on the server")
        return {"partial": self.policy or settings.partial, **self.model_dump(exclude={"policy", *not_stored})}

    @field_validator("scene")
    @classmethod
    def _require_project(cls, scene: SceneRef | None, info: ValidationInfo) -> SceneRef | None:
        if scene is not None and "project_id" in info.data and info.data["project_id"] is None:
            raise ValueError("requires project_id")
        return scene


class JobCreate(ResultFields):
    """A job request: what to generate, the fallback chain of models, and where the files belong."""

    kind: Literal["image", "video"] = "image"
    chain: Annotated[list[ChainEntry], Field(min_length=1, max_length=MAX_ENTRIES)]
    input: ModelInput | None = Field(None, description="of every entry that has none of its own")
    variants: Annotated[int, Field(ge=1, le=100)] | None = None
    placeholder: bool = False
    deadline_seconds: Seconds | None = None

    def parse_entries(self, settings: Settings, providers: Mapping[str, Provider]) -> list[ParsedEntry]:
        """Return entries with complete inputs. Raises Problem: 422 no input, unknown name in `map`, too much input."""
        errors: list[FieldError] = []
        entries = []
        seconds = settings.video_seconds if self.kind == "video" else settings.image_seconds
        for index, entry in enumerate(self.chain):
            field, is_own_input = f"chain[{index}]", entry.input is not None or entry.map is not None
            model_input = self._build_input(entry, field, errors)
            # What a synchronous provider has not returned by then is paid for and not seen.
            provider = providers.get(entry.provider)
            least = provider.submit_response_seconds if provider and provider.is_synchronous else 0.0
            limit = entry.seconds or max(seconds, least)
            parsed = FallbackEntry(provider=entry.provider, model=entry.model, input=model_input, seconds=limit)
            input_field = f"{field}.input" if is_own_input else "input"
            entries.append(ParsedEntry(parsed, input_field, references.find_references(model_input)))
        input_bytes = sum(len(json.dumps(dict(parsed.entry.input))) for parsed in entries)
        if not errors and input_bytes > validation.MAX_CHAIN_BYTES:
            message = f"holds more than {validation.MAX_CHAIN_BYTES} bytes of input: upload files and reference them"
            errors.append({"field": "chain", "message": message})
        validation.raise_errors(errors)
        return entries

    def build_request(
        self, chain: Sequence[FallbackEntry], settings: Settings, idempotency_key: str | None, sha256: str
    ) -> JobRequest:
        """Return the request to store; `sha256`, the hash of the HTTP request, is stored only with a key."""
        fields = self.build_fields(settings, "chain", "input", "deadline_seconds")
        prompt = chain[0].input.get("prompt")
        if self.prompt is None and isinstance(prompt, str):
            fields["prompt"] = prompt[:MAX_PROMPT_CHARS]
        return JobRequest(
            **fields,
            fallback_chain=tuple(chain),
            deadline_seconds=self.deadline_seconds or settings.job_deadline_seconds,
            idempotency_key=idempotency_key,
            request_sha256=sha256 if idempotency_key else None,
        )

    def _build_input(self, entry: ChainEntry, field: str, errors: list[FieldError]) -> dict[str, Any]:
        if entry.input is None and entry.map is None and self.input is None:
            errors.append({"field": f"{field}.input", "message": "is required: give one here or for the whole job"})
        model_input = dict(entry.input or ({} if entry.map else self.input or {}))
        own_fields = {name: value for name in MAPPABLE_FIELDS if (value := getattr(self, name)) is not None}
        job_fields = own_fields | (self.input or {})
        for model_field, job_field in (entry.map or {}).items():
            if job_field in job_fields:
                model_input[model_field] = job_fields[job_field]
            else:
                available = ", ".join(job_fields) or "no fields"
                message = f"names {job_field!r}, which this job does not have: it has {available}"
                errors.append(field_error(f"{field}.map.{model_field}", message))
        return model_input


def _check_key(value: str) -> str:
    key = value.strip(" ")
    if not 1 <= len(key) <= MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise ValueError(f"must be 1 to {MAX_KEY_CHARS} printable ASCII characters")
    return key


IdempotencyKey = Annotated[
    Annotated[str, AfterValidator(_check_key), Field(json_schema_extra={"minLength": 1, "maxLength": MAX_KEY_CHARS})]
    | None,
    Header(
        alias="Idempotency-Key",
        description="the same body under the same key and owner is the same job",
        examples=["order-4711"],
    ),
]
