"""Where settings are read from besides the environment, and the messages that refuse a name or a value."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from moorage.errors import ConfigError
from moorage.setting_types import IN_FLIGHT, suggest

DEVELOPER_PREFIX: Final = "MOORAGE_DEV_"
# Beginnings of established names; the names of all other fields begin with MOORAGE_ in the environment.
_ESTABLISHED: Final = (
    "ASSET_", "AWS_", "DATABASE_", "FAL_", "LOG_", "OPENAI_", "PUBLIC_", "REPLICATE_", "S3_", "STANDARD_",
)  # fmt: skip
_ALIASES: Final = {
    "broker_url": ("CELERY_BROKER_URL", "REDIS_URL"),
    "s3_endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "aws_session_token": ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"),
    "notify_urls": ("MOORAGE_NOTIFY_URL",),
}
# Read elsewhere, directly from the environment.
_OTHER_NAMES: Final = {"MOORAGE_FAILPOINT", "MOORAGE_DATA_DIR", "MOORAGE_DOTENV"}
_REPLACED: Final = {  # former names, beside those of constants
    **{f"MOORAGE_SUBMIT_CONCURRENCY_{name.upper()}": f"MOORAGE_IN_FLIGHT={name}=NUMBER" for name in IN_FLIGHT},
    **{f"MOORAGE_{name}_CRON": "MOORAGE_MAINTENANCE_CRON" for name in ("ORPHANS", "RETENTION", "USAGE")},
    "MOORAGE_KEEP_FAILED_DAYS": "MOORAGE_RETENTION_DAYS=bodies=DAYS",
    **{
        f"MOORAGE_{verb}_{name.upper()}_DAYS": f"MOORAGE_RETENTION_DAYS={name}=DAYS"
        for name in ("renders", "bodies", "rows")
        for verb in ("KEEP", "RETENTION")
    },
}
# Of a Service moorage or moorage-..., in the pods of its namespace.
_SERVICE: Final = re.compile(r"MOORAGE_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT(_\d+_\w+)?)")
# Beginnings of which an unknown name is suspicious: not MOORAGE_ (refused), nor those of boto3 and other programs.
_PREFIXES: Final = tuple(prefix for prefix in _ESTABLISHED if prefix not in ("AWS_", "DATABASE_", "LOG_"))
_OF_OTHERS: Final = {  # read by the providers' own clients
    *("OPENAI_ADMIN_KEY", "OPENAI_API_BASE", "OPENAI_API_TYPE", "OPENAI_BASE_URL"),
    *("FAL_KEY_ID", "FAL_KEY_SECRET", "REPLICATE_API_BASE_URL"),
}


def read_file_twins(kind: type[BaseSettings], dotenv: Any) -> dict[str, Any]:
    """Return, by field, the contents of the file that NAME_FILE names for NAME, in the environment or in `.env`."""
    contents, of_dotenv = {}, dotenv_values(dotenv or "")
    for field_name, field in kind.model_fields.items():
        for name in reversed(names_of(field_name, field)):
            if path := os.environ.get(f"{name}_FILE") or (not os.environ.get(name) and of_dotenv.get(f"{name}_FILE")):
                contents[field_name] = read_file(name, path)
    return contents


def build_aliases(field: str) -> AliasChoices:
    name = field.upper()
    return AliasChoices(*_ALIASES.get(field, (name if name.startswith(_ESTABLISHED) else f"MOORAGE_{name}",)))


def names_of(field_name: str, field: Any) -> list[str]:
    """Return the environment names of a field, the preferred one first."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if alias else [f"{DEVELOPER_PREFIX}{field_name.upper()}"]


def read_variable(name: str) -> str | None:
    """Return a variable that is no setting: of the environment, of the file that NAME_FILE names, else of `.env`."""
    dotenv = dotenv_values(dotenv_path())
    path = os.environ.get(f"{name}_FILE") or dotenv.get(f"{name}_FILE")
    return os.environ.get(name) or (read_file(name, path) if path else dotenv.get(name))


def read_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE={path}: cannot be read ({error})") from error


def dotenv_path() -> str:
    """Return the file that settings are read from besides the environment: MOORAGE_DOTENV, empty for none."""
    return os.environ.get("MOORAGE_DOTENV", ".env")


def unknown_names(settings: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Return a message for each name in the environment or in `.env` that is ours and does not exist, or not now."""
    known = {*settings, *_OTHER_NAMES}
    known |= {f"{name}_FILE" for name in known}
    given = _list_given() - known - {*overrides}
    return [
        _refuse(name, known, {*overrides}) for name in sorted(given) if name.startswith(("MOORAGE_", "FAL_JWKS_URL"))
    ]


def _refuse(name: str, known: set[str], overrides: set[str]) -> str:
    former = name.removesuffix("_FILE")
    override = f"{DEVELOPER_PREFIX}{former.removeprefix('MOORAGE_')}"
    if former in _REPLACED:
        return f"{name} was replaced: write {_REPLACED[former]} instead"
    if _SERVICE.fullmatch(name) and "KUBERNETES_SERVICE_HOST" in os.environ:
        return f"{name} is not a setting: Kubernetes sets it for a Service; write enableServiceLinks: false in the pod"
    if override in overrides:
        return f"{name} is a constant now: unset it (for development: {override}, see CONTRIBUTING.md)"
    if name.startswith(DEVELOPER_PREFIX):
        known, kind, source = overrides, "developer override", "CONTRIBUTING.md"
    else:
        kind, source = "setting", ".env.example"
    return f"{name} is not a {kind}: {suggest(name, known) or f'unset it, or see {source} for the names that exist'}"


def _list_given() -> set[str]:
    return {name.upper() for name in (*os.environ, *dotenv_values(dotenv_path()))}


def similar_names(settings: Iterable[str]) -> dict[str, str]:
    """Return the names that are probably misspelt settings of a provider or the store, and the setting of each."""
    names = {name for name in settings if name.startswith(_PREFIXES)}
    known = {*names, *(f"{name}_FILE" for name in names), *_OF_OTHERS}
    given = sorted(name for name in _list_given() - known if name.startswith(_PREFIXES))
    close = {name: difflib.get_close_matches(name, names, 1, 0.75) for name in given}
    return {name: similar[0] for name, similar in close.items() if similar}


def explain(kind: type[BaseSettings], item: Any) -> str:
    """Return the message for one of pydantic's errors: the name in the environment and the remedy."""
    name = str(item["loc"][0]) if item["loc"] else ""
    field = kind.model_fields.get(name)
    env = names_of(name, field)[0] if field else name
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{env} is not set: write {env}=... (see .env.example)"
    if not env:
        return str(message)
    is_secret = any(word in env.lower() for word in ("secret", "token", "url", "_key"))
    shown = "" if is_secret else f"={item['input']!r}"
    return f"{env}{shown}: {message[:1].lower()}{message[1:]}"
