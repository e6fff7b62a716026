"""`moorage up --real`: the settings of a real provider, and what a stack does not use."""

import os
import stat
from pathlib import Path

import pytest
from dotenv import dotenv_values

from cli import main
from cli.commands import up
from embedded.dotenv_file import dotenv_file
from moorage.errors import ConfigError
from moorage.settings import load_settings
from providers import load

NEEDED = {"database_url": "postgresql://u:p@127.0.0.1/d", "broker_url": "redis://127.0.0.1/0"}


def test_a_real_provider_needs_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)

    with pytest.raises(ConfigError, match="--real replicate needs REPLICATE_API_TOKEN"):
        up._build_overrides(["replicate"], None)


def test_all_settings_of_a_real_provider_are_used_and_the_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped in silence would be searched for an hour."""
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_token")
    monkeypatch.setenv("REPLICATE_MODELS", "google/nano-banana")
    monkeypatch.setenv("FAL_KEY", "other")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/d")

    overrides = up._build_overrides(["replicate"], None)
    ignored = up._list_given() - overrides.keys()

    assert overrides == {
        "REPLICATE_API_TOKEN": "r8_token",
        "REPLICATE_MODELS": "google/nano-banana",
        "MOORAGE_DEV_POLL_FIRST_SECONDS": "3",
    }
    assert {"DATABASE_URL", "FAL_KEY"} <= ignored
    assert not [name for name in ignored if name.startswith("REPLICATE_")]
    assert up._build_overrides(["replicate"], "https://tunnel.example")["PUBLIC_URL"] == "https://tunnel.example"


def test_settings_that_the_stack_does_not_set_itself_apply_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were dropped as if it had its own, so that no notification could be tried locally."""
    passed = {"MOORAGE_NOTIFY_URL": "http://127.0.0.1:9000/hooks", "MOORAGE_NOTIFY_SECRET": "whsec_x"}
    names = ("MOORAGE_API_TOKEN", "MOORAGE_EGRESS_ALLOW", "MOORAGE_ENV", "S3_PUBLIC_BUCKET")
    of_declared = ("MOORAGE_IN_FLIGHT", "MOORAGE_ALLOW_UNSIGNED", "MOORAGE_IGNORE_UNREGISTERED")
    own = dict.fromkeys((*names, *of_declared), "x")
    for name, value in {**passed, **own}.items():
        monkeypatch.setenv(name, value)

    overrides = up._build_overrides([], None)

    assert overrides == passed
    assert own.keys() <= up._list_given() - overrides.keys()


def test_settings_in_files_apply_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NAME_FILE was dropped without a word."""
    for name in ("secret", "token", "models"):
        (tmp_path / name).write_text(f"of {name}\n")
    files = {"MOORAGE_NOTIFY_SECRET": "secret", "REPLICATE_MODELS": "models", "REPLICATE_API_TOKEN": "token"}
    for name, file in files.items():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / file))
    monkeypatch.setenv("MOORAGE_API_TOKEN_FILE", "/nowhere")
    monkeypatch.setenv("MOORAGE_NOTIFY_URL", "http://127.0.0.1:9000/hooks")
    monkeypatch.setenv("MOORAGE_NOTIFY_URL_FILE", "/nowhere")
    monkeypatch.setenv("MOORAGE_ASSETS_FILE", "")

    without, real = up._build_overrides([], None), up._build_overrides(["replicate"], None)

    used = {"MOORAGE_NOTIFY_SECRET": "of secret", "MOORAGE_NOTIFY_URL": "http://127.0.0.1:9000/hooks"}
    assert without == {**used, "MOORAGE_ASSETS": ""}  # which counts as unset
    assert {"MOORAGE_API_TOKEN", *files} <= up._list_given()
    assert (real["REPLICATE_API_TOKEN"], real["REPLICATE_MODELS"]) == ("of token", "of models")


def test_the_file_of_a_placeholder_is_that_of_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers run in another folder, where it does not exist."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOORAGE_PLACEHOLDER_FILE", "logo.png")

    assert up._build_overrides([], None) == {"MOORAGE_PLACEHOLDER_FILE": str(tmp_path / "logo.png")}


def test_the_settings_of_the_stack_are_read_as_they_were_written(tmp_path: Path) -> None:
    """In a folder such as /data/o'brien, every other command ended with an error of the line."""
    values = {"MOORAGE_PROVIDERS_FILE": "/data/o'brien/a\\b\\\\/${HOME}/x y", "MOORAGE_API_TOKEN": "#'"}
    path = tmp_path / "data/up.env"

    with dotenv_file(path, values):
        assert dict(dotenv_values(path, interpolate=False)) == values
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_the_settings_of_another_stack_stay(tmp_path: Path) -> None:
    """With two folders, the end of one `moorage up` removed the settings of the other."""
    path = tmp_path / "up.env"

    with dotenv_file(path, {"PUBLIC_URL": "http://127.0.0.1:8000"}):
        path.write_text("of the other")

    assert path.read_text() == "of the other"


@pytest.mark.parametrize(
    ("command", "used"),
    [("up", "of the user"), ("demo", "of the user"), ("drill", "of the user"), ("status", "of the stack")],
)
def test_a_command_with_a_stack_of_its_own_uses_no_running_one(
    command: str, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second `up` got the settings of another or a dead one, in place of what the user had set."""
    (tmp_path / "up.env").write_text("MOORAGE_NOTIFY_SECRET='of the stack'\n")
    given = {"MOORAGE_DATA_DIR": str(tmp_path), "MOORAGE_DOTENV": "", "MOORAGE_NOTIFY_SECRET": "of the user"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    for name in ("DATABASE_URL", "DATABASE_URL_FILE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(SystemExit):
        main.main([command, "--help"])

    assert os.environ["MOORAGE_NOTIFY_SECRET"] == used


@pytest.mark.parametrize(
    ("public_url", "api_url", "possible"),
    [
        ("https://moorage.example", "https://api.replicate.com", True),
        ("http://127.0.0.1:8000", "https://api.replicate.com", False),
        ("http://127.0.0.1:8000", "http://127.0.0.1:9000", True),
    ],
)
def test_no_webhook_is_requested_that_a_provider_would_refuse(public_url: str, api_url: str, possible: bool) -> None:
    """Replicate answers 422 for an http: URL; without a webhook the result is polled."""
    settings = load_settings(
        _env_file=None, **NEEDED, replicate_api_token="r8_x", replicate_api_url=api_url,
        replicate_output_hosts=("127.0.0.1", "api.replicate.com"), egress_allow=("127.0.0.1:9000",),
    )  # fmt: skip

    assert load(settings)["replicate"].can_call(public_url) is possible
