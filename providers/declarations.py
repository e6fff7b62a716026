"""
Providers that MOORAGE_PROVIDERS_FILE declares, in TOML: one table each, named for the provider.

Secrets and tokens are names of environment variables. What is wrong is refused with its line and what to write.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import jmespath
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from moorage import settings_sources
from moorage.errors import ConfigError
from moorage.provider_types import PredictionStatus
from moorage.setting_types import HttpUrl, suggest

_HEADERS: Final = {"standard": 3, "digest": 4, "hmac": 1, "token": 1, "none": 0}
_USED: Final = {  # the keys that a signature has besides `is_hint`
    "standard": {"secrets", "headers", "encoding", "jwks"},
    "digest": {"secrets", "headers", "encoding", "jwks", "users"},
    "hmac": {"secrets", "headers", "encoding", "prefix", "algorithm", "is_timed", "tolerance_seconds"},
    "token": {"secrets", "headers", "encoding", "scheme"},
    "none": set(),
}
_PROBLEMS: Final = {"missing": "is missing", "extra_forbidden": "is not known", "model_type": "is not a table"}


def _match(pattern: str, problem: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(problem)
        return value

    return AfterValidator(check)


def _compile(text: str) -> str:
    try:
        expression = jmespath.compile(text)
        with suppress(jmespath.exceptions.JMESPathTypeError, ArithmeticError):
            expression.search({})  # an unknown function is found by a call only
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(f"is not a JMESPath expression: {str(error).splitlines()[0]}") from error
    return text


_VARIABLE: Final = _match("[A-Z][A-Z0-9_]{0,99}", "is not the name of an environment variable")
Variable = Annotated[str, _VARIABLE, Field(description='the name of an environment variable, "ACME_SECRET"')]
Variables = Annotated[tuple[Annotated[str, _VARIABLE], ...], Field(description='names of variables, ["ACME_SECRET"]')]
Header = Annotated[str, AfterValidator(str.lower), _match("[a-z0-9-]{1,100}", "is not the name of a header")]
Expression = Annotated[str, AfterValidator(_compile), Field(description='a JMESPath expression, "data.id"')]
Seconds = Annotated[int, Field(gt=0, le=10**8, description="a whole number of seconds above 0")]
Texts = Annotated[tuple[str, ...], Field(description='a list of texts, ["done"]')]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class WebhookDeclaration(_Table):
    signature: Literal["standard", "digest", "hmac", "token", "none"] = Field(
        description='"standard", "digest", "hmac", "token" or "none"'
    )
    secrets: Variables = ()
    encoding: Literal["base64", "text", "hex"] | None = Field(None, description='"base64", "text" or "hex"')
    headers: tuple[Header, ...] = Field((), description='names of headers, ["x-acme-signature"]')
    prefix: str = Field("", description='the text before the hexadecimal digits, "sha256="')
    algorithm: Literal["sha256", "sha512"] = Field("sha256", description='"sha256" or "sha512"')
    is_timed: bool = Field(False, description="true if the header has a signed time stamp t=")
    tolerance_seconds: Seconds = 300
    scheme: str = Field("", description='the word before the token, "Bearer"')
    jwks: tuple[HttpUrl, ...] = Field((), description='https: URLs of key sets, ["https://..."]')
    users: Texts = ()
    is_hint: bool = Field(False, description="true if the body must be confirmed by a poll")

    @model_validator(mode="after")
    def _check(self) -> "WebhookDeclaration":
        expected, kind = _HEADERS[self.signature], self.signature
        if unused := self.model_fields_set - {"signature", "is_hint"} - _USED[kind]:
            raise ValueError(
                f'signature "{kind}" does not use {", ".join(sorted(unused))}: write another, or remove it'
            )
        if "tolerance_seconds" in self.model_fields_set and not self.is_timed:
            raise ValueError("without a signed time stamp there is no tolerance: write is_timed = true, or remove it")
        if len(self.headers) != expected and not (kind == "standard" and not self.headers):
            raise ValueError(
                f'signature "{kind}" is in {expected} header(s): write headers = ["NAME", ...] with that many'
            )
        if kind == "digest" and not (self.jwks and self.users):
            raise ValueError('one set of keys signs for all users: write jwks = ["https://..."], users = ["YOUR_ID"]')
        if kind != "none" and not self.secrets and not self.jwks:
            raise ValueError('there is nothing to verify with: write secrets = ["NAME_OF_A_VARIABLE"]')
        return self


class FieldsDeclaration(_Table):
    id: Expression
    status: Expression
    outputs: Expression
    error: Expression | None = None
    completed_at: Expression | None = None
    expires_at: Expression | None = None
    when: Expression | None = None  # a falsy result: not about a prediction


class PollDeclaration(_Table):
    # {+id}: an id may have several segments, as in RFC 6570
    url: HttpUrl = Field(description='the status URL with {id}, "https://api.acme.example/v1/jobs/{id}"')
    token: Variable
    header: str = Field("Authorization", description='the name of the header, "x-key"')
    scheme: str = Field("Bearer", description='the word before the token, "Key", or ""')
    headers: Mapping[str, str] = Field({}, description='further headers, { "X-Version" = "1" }')
    serves_files: bool = Field(False, description="true if files at the host of url need the token, too")
    fields: Mapping[Literal["id", "status", "outputs", "error", "completed_at", "expires_at"], Expression] = {}

    @model_validator(mode="after")
    def _check(self) -> "PollDeclaration":
        url = self.url.replace("{+id}", "{id}", 1)
        rest = url.replace("{id}", "", 1).replace("{model}", "", 1)
        if "{id}" not in url.partition("//")[2].partition("/")[2] or "{" in rest or "}" in rest:
            raise ValueError("url has no {id} in its path, or other braces: write https://HOST/PATH/{id}")
        return self


class Declaration(_Table):
    """One provider: `api` for a service that is compatible with a built-in one, else fields, statuses and poll."""

    api: Literal["replicate", "fal", "openai"] | None = Field(None, description='"replicate", "fal" or "openai"')
    submit: str | None = Field(None, description='"bfl", beside fields and poll')
    base_url: HttpUrl | None = Field(None, description='the URL of the API, "https://api.acme.example"')
    token: Variable | None = None
    models: Texts = ()
    label: str | None = Field(None, description='its name in messages, "Acme"')
    output_hosts: Texts = ()
    output_life_seconds: Seconds | None = Field(None, description="a whole number of seconds above 0")
    first_poll_seconds: Seconds = 60
    webhook: WebhookDeclaration | None = None
    fields: FieldsDeclaration | None = None
    statuses: Mapping[Literal["queued", "running", "succeeded", "failed", "cancelled"], Texts] = Field(
        {}, description="lists of status words under queued, running, succeeded, failed, cancelled"
    )
    poll: PollDeclaration | None = None

    @model_validator(mode="after")
    def _check(self) -> "Declaration":
        if self.api:
            return self._check_compatible()
        if self.base_url or self.token or (self.models and not self.submit):
            raise ValueError("base_url, token and models belong to a compatible service: write api, or remove them")
        if self.fields is None or not self.statuses.get("succeeded"):
            raise ValueError('write the tables fields (id, status, outputs) and statuses (succeeded = ["done"])')
        words = [word.casefold() for word in self.words]
        if twice := sorted({word for word in words if words.count(word) > 1}):
            raise ValueError(f"statuses has {', '.join(twice)} more than once, in any case of letters: write it once")
        if self.poll is None and (self.webhook is None or self.is_hint or self.submit):
            raise ValueError("nothing confirms what it reports: write a table poll with url and token")
        return self

    def _check_compatible(self) -> "Declaration":
        if self.fields or self.poll or self.statuses or self.submit:
            raise ValueError(f'api = "{self.api}" has its own fields, statuses and polls: remove the tables')
        if self.base_url is None or self.token is None:
            raise ValueError("a compatible service has a URL and a key: write base_url and token")
        if self.api == "fal" and self.webhook is None:
            raise ValueError('its public keys are not fal\'s: write a table webhook with signature = "digest"')
        if self.webhook and self.webhook.signature != ("digest" if self.api == "fal" else "standard"):
            raise ValueError('its webhooks are signed as those of its api: write signature = "standard" or "digest"')
        used = {"signature", "headers", *(("jwks", "users") if self.api == "fal" else ("secrets",))}
        if self.webhook and (unused := self.webhook.model_fields_set - used):
            names, rest = ", ".join(sorted(unused)), ", ".join(sorted(used))
            raise ValueError(f'webhook of api = "{self.api}" does not use {names}: write no more than {rest}')
        return self

    @property
    def is_hint(self) -> bool:
        return self.webhook is not None and (self.webhook.is_hint or self.webhook.signature == "none")

    @property
    def words(self) -> list[str]:
        return [word for words in self.statuses.values() for word in words]

    @property
    def status_words(self) -> dict[str, PredictionStatus]:
        """Return the status by its word in lower case."""
        return {word.casefold(): status for status, words in self.statuses.items() for word in words}


def read_file(path: Path, known: Iterable[str]) -> dict[str, Declaration]:
    """Return the declarations in a file by name; `known`: names that are taken. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"MOORAGE_PROVIDERS_FILE={path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}; write TOML, a table for each provider") from error
    problems: list[str] = []
    declarations: dict[str, Declaration] = {}
    for name, table in tables.items():
        start = f"{path}, line {find_line(text, [name])}: {name}"
        if name in known or not re.fullmatch("[a-z][a-z0-9_-]{0,39}", name):
            problems.append(f"{start} is a name that is taken, or invalid: write another in lower case, [acme]")
            continue
        try:
            declarations[name] = Declaration.model_validate(table)
        except ValidationError as error:
            problems += [_explain(path, text, name, item) for item in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return declarations


def read_secrets(names: Iterable[str]) -> tuple[SecretStr, ...]:
    """Return the values of the environment variables that are set."""
    return tuple(SecretStr(value) for name in names if (value := settings_sources.read_variable(name)))


def find_line(text: str, path: Sequence[str]) -> int:
    """Return the line of the deepest part of a path that is written as a table or a key."""
    table: list[str] = []
    deepest, line = 0, 1
    for number, content in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[([^\[\]]+)\]", content):
            keys = table = _split_key(match[1])
        elif match := re.match(r"\s*([\w\"'.-]+)\s*=", content):
            keys = table + _split_key(match[1])
        else:
            continue
        if keys == list(path[: len(keys)]) and len(keys) > deepest:
            deepest, line = len(keys), number
    return line


def _split_key(text: str) -> list[str]:
    return [part.strip().strip("\"'") for part in text.split(".")]


def _explain(path: Path, text: str, name: str, item: Any) -> str:
    """Return the message for one of pydantic's errors, without the value, which may be a secret."""
    places = [str(part) for part in item["loc"]]
    model: Any = Declaration
    hint = ""
    known: list[str] = []
    for place in places:
        fields = getattr(model, "model_fields", {})
        field, known = fields.get(place), list(fields)
        hint = (field.description or "") if field else hint
        nested = [kind for kind in (_Table.__subclasses__()) if field and kind.__name__ in str(field.annotation)]
        model = nested[0] if nested else None
    if item["type"] == "extra_forbidden":
        hint = suggest(places[-1], known) or f"one of {', '.join(known)}"
    problem = _PROBLEMS.get(item["type"]) or item["msg"].removeprefix("Value error, ").replace("tuple", "list")
    advice = f"; {hint}" if hint.endswith("?") else f"; write {hint}" if hint and ": write" not in problem else ""
    place = ".".join([name, *places])
    return f"{path}, line {find_line(text, [name, *places])}: {place}: {problem}{advice}"
