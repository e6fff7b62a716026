"""Where settings are read from besides the environment, and the messages that refuse a name or a value."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from dotenv import dotenv_values
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from moorage.constants import DEVELOPER_PREFIX, Constants
from moorage.errors import ConfigError
from moorage.setting_types import suggest

# Read elsewhere, directly from the environment.
_OTHER_NAMES: Final = {"MOORAGE_FAILPOINT", "MOORAGE_DATA_DIR", "MOORAGE_DOTENV"}
_REPLACED: Final = {
    "MOORAGE_SUBMIT_CONCURRENCY_REPLICATE": "MOORAGE_IN_FLIGHT=replicate=NUMBER",
    "MOORAGE_SUBMIT_CONCURRENCY_FAL": "MOORAGE_IN_FLIGHT=fal=NUMBER",
    "MOORAGE_SUBMIT_CONCURRENCY_OPENAI": "MOORAGE_IN_FLIGHT=openai=NUMBER",
    "MOORAGE_ORPHANS_CRON": "MOORAGE_MAINTENANCE_CRON",
    "MOORAGE_RETENTION_CRON": "MOORAGE_MAINTENANCE_CRON",
    "MOORAGE_USAGE_CRON": "MOORAGE_MAINTENANCE_CRON",
    **{
        f"MOORAGE_{former}_DAYS": f"MOORAGE_RETENTION_DAYS={name}=DAYS"
        for former, name in {
            "KEEP_RENDERS": "renders",
            "KEEP_BODIES": "bodies",
            "KEEP_FAILED": "bodies",
            "KEEP_ROWS": "rows",
            "RETENTION_RENDERS": "renders",
            "RETENTION_BODIES": "bodies",
            "RETENTION_ROWS": "rows",
        }.items()
    },
}
# Former names of settings that are constants now, and their developer overrides.
_FIXED: Final = {
    "FAL_JWKS_URL" if field == "fal_jwks_url" else f"MOORAGE_{field.upper()}": f"{DEVELOPER_PREFIX}{field.upper()}"
    for field in Constants.model_fields
}


# Beginnings of names of which an unknown one is suspicious: not MOORAGE_ (refused), nor those of boto3 and Celery.
_PREFIXES: Final = ("REPLICATE_", "FAL_", "OPENAI_", "STANDARD_", "S3_", "ASSET_", "PUBLIC_")
_OF_OTHERS: Final = {  # read by the providers' own clients
    *("OPENAI_ADMIN_KEY", "OPENAI_API_BASE", "OPENAI_API_TYPE", "OPENAI_BASE_URL"),
    *("FAL_KEY_ID", "FAL_KEY_SECRET", "REPLICATE_API_BASE_URL"),
}


class FileTwins(PydanticBaseSettingsSource):
    """For every setting NAME, the contents of the file that NAME_FILE names."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        for name in names_of(field_name, field):
            path = os.environ.get(f"{name}_FILE")
            if path:
                return read_file(name, path), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        contents = {n: self.get_field_value(f, n)[0] for n, f in self.settings_cls.model_fields.items()}
        return {name: value for name, value in contents.items() if value is not None}


def names_of(field_name: str, field: Any, prefix: str = "MOORAGE_") -> list[str]:
    """Return the environment names of a field, the preferred one first."""
    alias = field.validation_alias
    return [str(choice) for choice in alias.choices] if alias else [f"{prefix}{field_name.upper()}"]


def read_variable(name: str) -> str | None:
    """Return a variable that is no setting: of the environment, of the file that NAME_FILE names, else of `.env`."""
    if path := os.environ.get(f"{name}_FILE"):
        return os.environ.get(name) or read_file(name, path)
    return os.environ.get(name) or dotenv_values(dotenv_path()).get(name)


def read_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}_FILE={path}: cannot be read ({error})") from error


def dotenv_path() -> str:
    """Return the file that settings are read from besides the environment: MOORAGE_DOTENV, empty for none."""
    return os.environ.get("MOORAGE_DOTENV", ".env")


def unknown_names(settings: Iterable[str]) -> list[str]:
    """
    Return a message for each name in the environment or in `.env` that is ours and no setting.

    Args:
        settings: the environment names of all settings.
    """
    known = {*settings, *_OTHER_NAMES}
    known |= {f"{name}_FILE" for name in known}
    seen = {name.upper() for name in (*os.environ, *dotenv_values(dotenv_path()))} - known - set(_FIXED.values())
    return [
        _refuse(name, known)
        for name in sorted(seen)
        if name.startswith("MOORAGE_") or name.removesuffix("_FILE") in _FIXED
    ]


def similar_names(settings: Iterable[str]) -> dict[str, str]:
    """Return the names that are probably misspelt settings of a provider or the store, and the setting of each."""
    names = {name for name in settings if name.startswith(_PREFIXES)}
    known = {*names, *(f"{name}_FILE" for name in names), *_OF_OTHERS, *_FIXED}
    given = sorted(name.upper() for name in (*os.environ, *dotenv_values(dotenv_path())))
    close = {x: difflib.get_close_matches(x, names, 1, 0.75) for x in given if x.startswith(_PREFIXES)}
    return {name: similar[0] for name, similar in close.items() if similar and name not in known}


def _refuse(name: str, known: Iterable[str]) -> str:
    former = name.removesuffix("_FILE")
    if former in _REPLACED:
        return f"{name} was replaced: write {_REPLACED[former]} instead"
    if former in _FIXED:
        return f"{name} is a constant now: unset it (for development: {_FIXED[former]}, see CONTRIBUTING.md)"
    if name.startswith(DEVELOPER_PREFIX):
        known, kind, source = _FIXED.values(), "developer override", "CONTRIBUTING.md"
    else:
        kind, source = "setting", ".env.example"
    return f"{name} is not a {kind}: {suggest(name, known) or f'unset it, or see {source} for the names that exist'}"


def explain(kind: type[BaseSettings], item: Any) -> str:
    """Return the message for one of pydantic's errors: the name in the environment and the remedy."""
    name = str(item["loc"][0]) if item["loc"] else ""
    field = kind.model_fields.get(name)
    env = names_of(name, field, str(kind.model_config.get("env_prefix")))[0] if field else name
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{env} is not set: write {env}=... (see .env.example)"
    if not env:
        return str(message)
    is_secret = any(word in env.lower() for word in ("secret", "token", "url", "_key"))
    shown = "" if is_secret else f"={item['input']!r}"
    return f"{env}{shown}: {message[:1].lower()}{message[1:]}"
