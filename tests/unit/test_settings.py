"""Settings: read from the environment, wrong ones refused with what to write."""

import os

import pytest

from moorage import settings
from moorage.errors import ConfigError

GOOD = {"DATABASE_URL": "postgresql://u:p@h/d", "REDIS_URL": "redis://h:6379/0"}


@pytest.fixture
def env(monkeypatch, tmp_path):
    """Return a way to set the environment, which is otherwise empty of settings."""
    monkeypatch.chdir(tmp_path)  # no .env
    for name in [n for n in os.environ if n.startswith(("MOORAGE_", "REPLICATE_", "AWS_", "S3_"))]:
        monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "CELERY_BROKER_URL", "REDIS_URL", "PUBLIC_URL", "LOG_LEVEL", "LOG_FORMAT"):
        monkeypatch.delenv(name, raising=False)

    def put(**values):
        for name, value in {**GOOD, **values}.items():
            monkeypatch.setenv(name, value)

    return put


def refusal(env, **values):
    env(**values)
    with pytest.raises(ConfigError) as caught:
        settings.load()
    return str(caught.value)


def test_the_usual_names_are_enough(env):
    """Nobody should have to learn ours to begin."""
    env()

    loaded = settings.load()

    assert loaded.database_url.get_secret_value() == GOOD["DATABASE_URL"]
    assert loaded.broker_url.get_secret_value() == GOOD["REDIS_URL"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("valkey://:p@valkey:6379/0", "redis://:p@valkey:6379/0"),
        ("valkeys://valkey/0", "rediss://valkey/0"),
        ("valkey://a;valkey://valkey", "redis://a;redis://valkey"),
        ("redis://:valkey@valkey:6379/0", "redis://:valkey@valkey:6379/0"),
        ("amqp://u:p@valkey:5672/", "amqp://u:p@valkey:5672/"),
    ],
)
def test_valkeys_own_scheme_is_taken_for_that_of_redis(env, given, taken):
    """Celery's transport has no valkey://: a start would be accepted that cannot reach its broker."""
    env(CELERY_BROKER_URL=given)

    assert settings.load().broker_url.get_secret_value() == taken


def test_a_missing_setting_is_refused_by_name(env, monkeypatch):
    """With the line to write."""
    env()
    monkeypatch.delenv("DATABASE_URL")

    with pytest.raises(ConfigError, match="DATABASE_URL is not set: write DATABASE_URL="):
        settings.load()


def test_a_misspelt_name_is_refused_with_the_right_one(env):
    """A setting that silently does nothing is worse than none."""
    assert "did you mean MOORAGE_LEASE_SECONDS?" in refusal(env, MOORAGE_LEASE_SECOND="30")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", "mysql://h/d", "postgresql://USER:PASSWORD@HOST"),
        ("REDIS_URL", "http://h", "redis://"),
        ("MOORAGE_LEASE_SECONDS", "1", "MOORAGE_LEASE_SECONDS"),
        ("MOORAGE_MAX_ERRORS", "0", "MOORAGE_MAX_ERRORS"),
        ("MOORAGE_MAX_ERRORS", "many", "MOORAGE_MAX_ERRORS='many'"),
        ("MOORAGE_LEASE_SECONDS", "inf", "MOORAGE_LEASE_SECONDS"),
        ("MOORAGE_JOB_DEADLINE_SECONDS", "inf", "MOORAGE_JOB_DEADLINE_SECONDS"),
        ("MOORAGE_JOB_DEADLINE_SECONDS", "nan", "MOORAGE_JOB_DEADLINE_SECONDS"),
        ("PUBLIC_URL", "example.com", "https://"),
        ("MOORAGE_EGRESS_ALLOW", "localhost:80", "ADDRESS:PORT"),
        ("MOORAGE_EGRESS_ALLOW", "127.0.0.1", "ADDRESS:PORT"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(env, name, value, says):
    """The name and what to write, in one line."""
    message = refusal(env, **{name: value})

    assert says in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL"])
def test_a_refusal_does_not_print_a_secret(env, name):
    """Logs keep what is printed at start."""
    assert "hunter2" not in refusal(env, **{name: "wrong://u:hunter2@h/d"})


def test_all_that_is_wrong_is_told_at_once(env):
    """One start, one list."""
    message = refusal(env, MOORAGE_MAX_ERRORS="0", MOORAGE_QUEUE_DEPTH="x", MOORAGE_NOPE="1")

    assert len(message.splitlines()) == 3


def test_a_file_twin_is_read(env, tmp_path):
    """Secrets are mounted as files; the line end is not part of them."""
    (tmp_path / "token").write_text("r8_abc\n")
    env(REPLICATE_API_TOKEN_FILE=str(tmp_path / "token"))

    token = settings.load().replicate_api_token

    assert token is not None
    assert token.get_secret_value() == "r8_abc"


def test_a_file_twin_that_is_not_there_is_refused(env):
    """Else the start would go on without the secret."""
    assert "REPLICATE_API_TOKEN_FILE=/nowhere" in refusal(env, REPLICATE_API_TOKEN_FILE="/nowhere")


def test_secrets_are_several_for_rotation(env):
    """Old and new live side by side."""
    env(REPLICATE_WEBHOOK_SECRET="whsec_a, whsec_b")

    assert [s.get_secret_value() for s in settings.load().replicate_webhook_secret] == ["whsec_a", "whsec_b"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"MOORAGE_EGRESS_ALLOW": "127.0.0.1:1"}, "MOORAGE_EGRESS_ALLOW"),
        ({"MOORAGE_API_TOKEN": "short"}, "fewer than 32"),
        ({"REPLICATE_API_TOKEN": "r8_x"}, "REPLICATE_WEBHOOK_SECRET"),
    ],
)
def test_production_refuses_what_development_allows(env, values, says):
    """An open guard, a guessable token, an unsigned provider."""
    assert says in refusal(env, MOORAGE_ENV="production", **values)
    env(MOORAGE_ENV="development", **values)
    settings.load()
