"""Settings: read from the environment, wrong ones refused with what to write."""

import os

import pytest

from moorage import settings, settings_sources
from moorage.errors import ConfigError
from moorage.settings import Constants, Settings

GOOD = {"DATABASE_URL": "postgresql://u:p@h/d", "REDIS_URL": "redis://h:6379/0"}


@pytest.fixture
def env(monkeypatch, tmp_path):
    """Return a way to set the environment, which is otherwise empty of settings."""
    monkeypatch.chdir(tmp_path)  # no .env
    for name in [n for n in os.environ if n.startswith(("MOORAGE_", "REPLICATE_", "FAL_", "AWS_", "S3_"))]:
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
        settings.load_settings()
    return str(caught.value)


def test_the_usual_names_are_enough(env):
    """Nobody should have to learn ours to begin."""
    env()

    loaded = settings.load_settings()

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

    assert settings.load_settings().broker_url.get_secret_value() == taken


def test_a_missing_setting_is_refused_by_name(env, monkeypatch):
    """With the line to write."""
    env()
    monkeypatch.delenv("DATABASE_URL")

    with pytest.raises(ConfigError, match="DATABASE_URL is not set: write DATABASE_URL="):
        settings.load_settings()


def test_a_misspelt_name_is_refused_with_the_right_one(env):
    """A setting that silently does nothing is worse than none."""
    assert "did you mean MOORAGE_LEASE_SECONDS?" in refusal(env, MOORAGE_LEASE_SECOND="30")


@pytest.mark.parametrize("name", ["MOORAGE_PORT", "MOORAGE_SERVICE_PORT_HTTP", "MOORAGE_API_PORT_8000_TCP_ADDR"])
def test_a_variable_of_a_kubernetes_service_is_refused_with_its_origin(env, name):
    """Every process ended at its start, and no manifest has the name that it refused."""
    given = {name: "tcp://10.0.0.1:8000"}
    assert "Kubernetes" not in refusal(env, **given)  # somebody's guess
    assert f"{name} is not a setting: Kubernetes sets it" in refusal(env, KUBERNETES_SERVICE_HOST="10.0.0.2", **given)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("REPLICATE_WEBOOK_SECRET", "REPLICATE_WEBHOOK_SECRET"),
        ("replicate_api_key", "REPLICATE_API_TOKEN"),
        ("FAL_API_KEY", "FAL_KEY"),
        ("OPENAI_KEY", "OPENAI_API_KEY"),
        ("STANDARD_WEBHOOK_SECRETS", "STANDARD_WEBHOOK_SECRET"),
        ("S3_PUBLIC_BUKET", "S3_PUBLIC_BUCKET"),
        ("PUBLIC_URLS", "PUBLIC_URL"),
    ],
)
def test_a_name_of_a_provider_that_is_nearly_right_is_warned_of(env, caplog, name, meant):
    """With the wrong name every webhook is refused, and nothing else says why. These names may be another program's."""
    env(**{name: "hunter2"})

    settings.load_settings()

    (record,) = [record for record in caplog.records if record.message == "setting.ignored"]
    assert record.fields == {"name": name.upper(), "reason": f"not a setting: did you mean {meant}?"}


def test_names_of_the_providers_own_clients_are_not_warned_of(env, caplog):
    """A warning at each start that is wrong hides the next one that is right."""
    of_others = (
        "OPENAI_BASE_URL",
        "OPENAI_ADMIN_KEY",
        "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID",
        "FAL_KEY_ID",
        "FAL_KEY_FILE",
    )
    env(**dict.fromkeys(of_others, ""), AWS_PROFILE="a", REPLICATE_API_TOKEN="t", FAL_KEY="f")

    settings.load_settings()

    assert [record.fields for record in caplog.records if record.message == "setting.ignored"] == []


def test_level_and_format_of_logs_are_read_in_any_case(env):
    """Every other program takes `info`."""
    env(LOG_LEVEL="info", LOG_FORMAT="JSON")

    loaded = settings.load_settings()

    assert (loaded.log_level, loaded.log_format) == ("INFO", "json")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", "mysql://h/d", "postgresql://USER:PASSWORD@HOST"),
        ("REDIS_URL", "http://h", "redis://"),
        ("MOORAGE_LEASE_SECONDS", "1", "MOORAGE_LEASE_SECONDS"),
        ("MOORAGE_MAX_ERRORS", "0", "MOORAGE_MAX_ERRORS"),
        ("MOORAGE_MAX_ERRORS", "many", "MOORAGE_MAX_ERRORS='many'"),
        ("MOORAGE_LEASE_SECONDS", "inf", "MOORAGE_LEASE_SECONDS"),
        ("MOORAGE_DOWNLOAD_TOTAL_SECONDS", "600", "less than or equal to 540"),
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
    message = refusal(env, MOORAGE_MAX_ERRORS="0", MOORAGE_DEV_QUEUE_DEPTH="x", MOORAGE_NOPE="1")

    assert len(message.splitlines()) == 3


def test_a_file_twin_is_read(env, tmp_path):
    """Secrets are mounted as files; the line end is not part of them."""
    (tmp_path / "token").write_text("r8_abc\n")
    env(REPLICATE_API_TOKEN_FILE=str(tmp_path / "token"))

    token = settings.load_settings().replicate_api_token

    assert token is not None
    assert token.get_secret_value() == "r8_abc"


def test_a_file_twin_in_the_dotenv_file_is_read(env, tmp_path):
    """It was ignored without a word: webhooks were accepted unsigned, although the secret was there."""
    for name in ("token", "other", "owners"):
        (tmp_path / name).write_text(f"of {name}\n")
    (tmp_path / ".env").write_text("REPLICATE_API_TOKEN_FILE=token\nFAL_KEY_FILE=token\nSUNO_TOKEN_FILE=owners\n")
    env(FAL_KEY_FILE=str(tmp_path / "other"))

    loaded = settings.load_settings()

    assert loaded.replicate_api_token.get_secret_value() == "of token"
    assert loaded.fal_key.get_secret_value() == "of other"  # the environment before the file
    assert settings_sources.read_variable("SUNO_TOKEN") == "of owners"
    assert Settings(_env_file=None).replicate_api_token is None


def test_a_file_twin_in_the_dotenv_file_does_not_replace_the_environment(env, tmp_path):
    """A `.env` with the secret of another place, which does not exist here, ended a start that had its own value."""
    (tmp_path / ".env").write_text("REPLICATE_API_TOKEN_FILE=/nowhere\n")
    env(REPLICATE_API_TOKEN="r8_abc")

    token = settings.load_settings().replicate_api_token

    assert token.get_secret_value() == "r8_abc"


def test_a_file_twin_that_is_not_there_is_refused(env):
    """Else the start would go on without the secret."""
    assert "REPLICATE_API_TOKEN_FILE=/nowhere" in refusal(env, REPLICATE_API_TOKEN_FILE="/nowhere")


def test_secrets_are_several_for_rotation(env):
    """Old and new live side by side."""
    env(REPLICATE_WEBHOOK_SECRET="whsec_a, whsec_b")

    assert [s.get_secret_value() for s in settings.load_settings().replicate_webhook_secret] == ["whsec_a", "whsec_b"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"MOORAGE_EGRESS_ALLOW": "127.0.0.1:1"}, "MOORAGE_EGRESS_ALLOW"),
        ({"MOORAGE_API_TOKEN": "short"}, "fewer than 32"),
        ({"REPLICATE_API_TOKEN": "r8_x"}, "REPLICATE_WEBHOOK_SECRET"),
        ({"FAL_KEY": "a:b"}, "FAL_USER_ID"),
    ],
)
def test_production_refuses_what_development_allows(env, values, says):
    """An open guard, a guessable token, an unsigned provider."""
    assert says in refusal(env, MOORAGE_ENV="production", **values)
    env(MOORAGE_ENV="development", **values)
    settings.load_settings()


# --- submissions in flight


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        ("", {"replicate": 10, "fal": 10, "openai": 10}),
        ("fal=3", {"replicate": 10, "fal": 3, "openai": 10}),
        ("Replicate:Kling=2,fal=20", {"replicate": 10, "fal": 20, "openai": 10, "replicate:kling": 2}),
        (" openai = 1 , replicate=25,", {"replicate": 25, "fal": 10, "openai": 1}),
    ],
)
def test_a_provider_without_a_limit_keeps_its_default(env, value, limits):
    """Changing one must not require writing down the others."""
    env(MOORAGE_IN_FLIGHT=value)

    assert settings.load_settings().in_flight == limits


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("fal", "write fal=NUMBER"),
        ("fal=", "write fal=NUMBER"),
        ("fal=0", "write fal=NUMBER with a whole number above 0"),
        ("fal=-1", "write fal=NUMBER"),
        ("fal=1.5", "write fal=NUMBER"),
        ("fal=many", "write fal=NUMBER"),
        ("fal=1=2", "write fal=NUMBER"),
        ("fal=1" + "0" * 5000, "write fal=NUMBER"),
        ("fal=3,openai=2,fal=3", "fal is given twice"),
        ("fal:x=3,fal: X=2", "fal:x is given twice"),
        ("fal:=3", "write a part of the names of models after fal:"),
        ("fal:x=0", "write fal:x=NUMBER with a whole number above 0"),
    ],
)
def test_a_wrong_limit_is_refused_with_the_remedy(env, value, says):
    """A limit that is ignored costs money at the provider."""
    message = refusal(env, MOORAGE_IN_FLIGHT=value)

    assert message.startswith("MOORAGE_IN_FLIGHT=")
    assert says in message


def test_limits_of_owners_are_read(env):
    """A name without a number limits nothing."""
    env(MOORAGE_OWNER_LIMITS="in_flight=,open_jobs=100, jobs_per_hour = 60 ,")

    assert settings.load_settings().owner_limits == {"open_jobs": 100, "jobs_per_hour": 60}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("open_job=3", "did you mean open_jobs?"),
        ("bytes=3", "write one of in_flight, open_jobs, jobs_per_hour, stored_bytes"),
        ("open_jobs=0", "write open_jobs=NUMBER with a whole number above 0"),
        ("stored_bytes=5GB", "write stored_bytes=NUMBER"),
        ("open_jobs=3,open_jobs=4", "open_jobs is given twice"),
    ],
)
def test_a_wrong_limit_of_owners_is_refused_with_the_remedy(env, value, says):
    """A limit that is ignored protects nobody."""
    assert says in refusal(env, MOORAGE_OWNER_LIMITS=value)


def test_days_of_retention_are_read(env):
    """A name that is not given keeps its default."""
    env(MOORAGE_RETENTION_DAYS="renders=365, rows = 0.5")

    wanted = {"renders": 365.0, "bodies": 30.0, "dead_letters": 90.0, "rows": 0.5}
    assert settings.load_settings().retention_days == wanted


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("render=3", "did you mean renders?"),
        ("renders", "write renders=DAYS"),
        ("renders=-1", "write renders=DAYS"),
        ("rows=7,rows=8", "rows is given twice"),
    ],
)
def test_wrong_days_of_retention_are_refused_with_the_remedy(env, value, says):
    """Days that are ignored delete what was to be kept, or keep it for ever."""
    assert says in refusal(env, MOORAGE_RETENTION_DAYS=value)


# --- number, former names, developer overrides


def test_there_are_few_settings():
    """Few enough for an operator to read them all: a new one needs a reason, or a constant serves."""
    assert len(Settings.model_fields) <= 75
    assert not set(Settings.model_fields) & set(Constants.model_fields)


@pytest.mark.parametrize(
    ("former", "says"),
    [
        ("MOORAGE_SUBMIT_CONCURRENCY_REPLICATE", "write MOORAGE_IN_FLIGHT=replicate=NUMBER instead"),
        ("MOORAGE_SUBMIT_CONCURRENCY_FAL", "write MOORAGE_IN_FLIGHT=fal=NUMBER instead"),
        ("MOORAGE_SUBMIT_CONCURRENCY_OPENAI", "write MOORAGE_IN_FLIGHT=openai=NUMBER instead"),
        ("MOORAGE_ORPHANS_CRON", "write MOORAGE_MAINTENANCE_CRON instead"),
        ("MOORAGE_RETENTION_CRON", "write MOORAGE_MAINTENANCE_CRON instead"),
        ("MOORAGE_USAGE_CRON", "write MOORAGE_MAINTENANCE_CRON instead"),
        ("MOORAGE_KEEP_RENDERS_DAYS", "write MOORAGE_RETENTION_DAYS=renders=DAYS instead"),
        ("MOORAGE_KEEP_BODIES_DAYS", "write MOORAGE_RETENTION_DAYS=bodies=DAYS instead"),
        ("MOORAGE_KEEP_FAILED_DAYS", "write MOORAGE_RETENTION_DAYS=bodies=DAYS instead"),
        ("MOORAGE_KEEP_FAILED_DAYS_FILE", "write MOORAGE_RETENTION_DAYS=bodies=DAYS instead"),
        ("MOORAGE_KEEP_ROWS_DAYS", "write MOORAGE_RETENTION_DAYS=rows=DAYS instead"),
        *[
            (former, "is a constant now: unset it")
            for former in (
                "FAL_JWKS_URL",
                "FAL_JWKS_URL_FILE",
                "MOORAGE_ANSWER_SECONDS",
                "MOORAGE_BYTES_IN_FLIGHT",
                "MOORAGE_DISCARD_SECONDS",
                "MOORAGE_DISPATCH_SECONDS",
                "MOORAGE_DOWNLOAD_CONNECT_SECONDS",
                "MOORAGE_DOWNLOAD_IDLE_SECONDS",
                "MOORAGE_DOWNLOAD_MAX_REDIRECTS",
                "MOORAGE_DOWNLOAD_MIN_BYTES_PER_SECOND",
                "MOORAGE_DRAIN_SECONDS",
                "MOORAGE_MAX_CRASHES",
                "MOORAGE_ORPHAN_AGE_SECONDS",
                "MOORAGE_ORPHANS_PER_RUN",
                "MOORAGE_POLL_FIRST_SECONDS",
                "MOORAGE_QUEUE_DEPTH",
                "MOORAGE_RECONCILE_SECONDS",
                "MOORAGE_WAIT_BASE_SECONDS",
                "MOORAGE_WAIT_CAP_SECONDS",
            )
        ],
    ],
)
def test_a_former_name_is_refused_with_what_replaced_it(env, former, says):
    """An upgrade must not drop a value that an operator chose."""
    message = refusal(env, **{former: "5"})

    assert message.startswith(f"{former} ")
    assert says in message
    assert len(message.splitlines()) == 1


def test_a_former_name_in_the_dotenv_file_is_refused(env, tmp_path):
    """Most deployments keep their settings there."""
    env()
    (tmp_path / ".env").write_text("MOORAGE_USAGE_CRON=off\nFAL_JWKS_URL=https://rest.fal.ai/jwks.json\n")

    with pytest.raises(ConfigError, match=r"FAL_JWKS_URL is a constant(.|\n)*MOORAGE_USAGE_CRON was replaced"):
        settings.load_settings()


def test_a_constant_is_overridden_by_the_developer_prefix(env, tmp_path):
    """Tests and the demo cannot wait for the periods of a deployment."""
    (tmp_path / ".env").write_text("MOORAGE_DEV_DRAIN_SECONDS=4\n")
    env(MOORAGE_DEV_DISPATCH_SECONDS="0.2", MOORAGE_DEV_FAL_JWKS_URL="https://a/, https://b/")

    constants = settings.load_settings().constants

    assert (constants.dispatch_seconds, constants.drain_seconds, constants.reconcile_seconds) == (0.2, 4.0, 2.0)
    assert constants.fal_jwks_url == ("https://a/", "https://b/")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MOORAGE_DEV_DISPACH_SECONDS", "1", "did you mean MOORAGE_DEV_DISPATCH_SECONDS?"),
        ("MOORAGE_DEV_LEASE_SECONDS", "5", "MOORAGE_DEV_LEASE_SECONDS is not a developer override"),
        ("MOORAGE_DEV_SOMETHING_ENTIRELY_DIFFERENT", "1", "see CONTRIBUTING.md"),
        ("MOORAGE_DEV_QUEUE_DEPTH", "0", "MOORAGE_DEV_QUEUE_DEPTH='0'"),
        ("MOORAGE_DEV_DRAIN_SECONDS", "inf", "MOORAGE_DEV_DRAIN_SECONDS='inf'"),
        ("MOORAGE_DEV_FAL_JWKS_URL", ",", "MOORAGE_DEV_FAL_JWKS_URL"),
    ],
)
def test_a_wrong_developer_override_is_refused(env, name, value, says):
    """A test that does not run with the value it set proves something else."""
    message = refusal(env, **{name: value})

    assert says in message
    assert len(message.splitlines()) == 1


def test_production_refuses_developer_overrides(env):
    """They shorten waits for tests: in a deployment one would go unnoticed."""
    message = refusal(env, MOORAGE_ENV="production", MOORAGE_DEV_MAX_CRASHES="50", MOORAGE_DEV_QUEUE_DEPTH="1")

    assert "MOORAGE_DEV_MAX_CRASHES, MOORAGE_DEV_QUEUE_DEPTH: developer overrides are refused in production" in message


@pytest.mark.parametrize(
    "given",
    [
        {"AWS_ACCESS_KEY_ID": "a"},
        {"AWS_SECRET_ACCESS_KEY": "s"},
        {"AWS_SESSION_TOKEN": "t"},
        {"AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"},
    ],
)
def test_a_part_of_the_keys_of_s3_is_refused(env, given):
    """Another key would be searched for, and the one that was written ignored."""
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY belong together" in refusal(env, **given)


@pytest.mark.parametrize("given", [{"S3_PUBLIC_BUCKET": "moorage-private"}, {"S3_PRIVATE_BUCKET": "moorage-public"}])
def test_one_bucket_for_private_and_public_files_is_refused(env, given):
    """It was opened to everyone, with the uploads and the files in quarantine."""
    assert "S3_PUBLIC_BUCKET and S3_PRIVATE_BUCKET are the same bucket" in refusal(env, **given)


def test_webhooks_larger_than_the_memory_for_all_of_them_are_refused(env):
    """Each of them would be answered 503, for ever, and the provider would give up."""
    assert "MOORAGE_WEBHOOK_MAX_BYTES=134217729: at most 134217728" in refusal(
        env, MOORAGE_WEBHOOK_MAX_BYTES="134217729"
    )
    env(MOORAGE_WEBHOOK_MAX_BYTES="134217728")
    assert settings.load_settings().webhook_max_bytes == 134217728


@pytest.mark.parametrize("base", ["https://Moorage.example/v1/assets/", "http://moorage.example:80/v1/assets"])
def test_files_that_would_be_redirected_to_themselves_are_refused(env, base):
    """Every reader would follow the same answer until it gives up."""
    given = {"PUBLIC_URL": "https://moorage.example", "ASSET_BASE_URL": base}

    assert "MOORAGE_ASSETS=signed or stream" in refusal(env, **given)
    env(MOORAGE_ASSETS="stream", **given)
    assert settings.load_settings().asset_base_url == base.rstrip("/")


@pytest.mark.parametrize("value", ["9464", "127.0.0.1", ":9464", "127.0.0.1:0", "http://127.0.0.1:9464", "a b:1"])
def test_an_address_to_listen_on_has_a_host_and_a_port(env, value):
    """The default is on loopback; `off` is no address."""
    env()
    assert settings.load_settings().metrics_address == "127.0.0.1:9464"
    assert "write HOST:PORT" in refusal(env, MOORAGE_METRICS_ADDRESS=value)
