"""Valkey and S3 behind TLS: the right certificate is accepted, another is refused in one line with the setting."""

import pytest

from cli.commands.doctor.checks import check_broker
from embedded.stack import Stack
from moorage.settings import load_settings
from tests.integration import command_line as cli
from tests.support import fork_server
from tests.support.tls import Authority

BOOT = """
import sys
from moorage.errors import ConfigError
from worker import boot
try:
    boot.check_dependencies({"quick", "keep"})
except ConfigError as error:
    sys.exit(f"moorage: {error}")
"""
WRONG = ("another host", "an unknown issuer")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def broker_url(stack: Stack, port: int, parameters: str) -> str:
    plain = stack.valkey.url().partition("@")[0].removeprefix("redis")
    return f"rediss{plain}@localhost:{port}/0{parameters}"


@pytest.fixture(params=WRONG)
def wrong(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_broker_with_the_right_certificate_is_used(authority: Authority, stack: Stack, database_url: str) -> None:
    """Nothing is asked for but the file of the issuer's certificates."""
    with authority.serve(stack.valkey.port) as port:
        url = broker_url(stack, port, f"?ssl_ca_certs={authority.file}")
        settings = load_settings(_env_file=None, database_url=database_url, broker_url=url)
        done = boot(cli.environment(stack, database_url, CELERY_BROKER_URL=url))

        assert {check.level for check in check_broker(settings)} == {"ok"}

    assert (done.returncode, done.stderr) == (0, "")


def test_a_broker_with_a_wrong_certificate_is_refused(
    authority: Authority, stack: Stack, database_url: str, wrong: str
) -> None:
    """kombu accepts any certificate by default."""
    with authority.serve(stack.valkey.port, "localhost" if wrong == WRONG[1] else "other.example") as port:
        parameters = "" if wrong == WRONG[1] else f"?ssl_ca_certs={authority.file}"
        url = broker_url(stack, port, parameters)
        settings = load_settings(_env_file=None, database_url=database_url, broker_url=url)
        done = boot(cli.environment(stack, database_url, CELERY_BROKER_URL=url))

        (found,) = check_broker(settings)

    assert found.level == "fail"
    assert "certificate" in found.what
    assert "CELERY_BROKER_URL" in found.advice
    check_refusal(done, "CELERY_BROKER_URL")


def test_a_rabbitmq_with_a_wrong_certificate_is_refused(
    authority: Authority, stack: Stack, database_url: str, wrong: str
) -> None:
    """Its host was not compared. Without a server behind it, what is accepted is only closed."""
    parameters = "" if wrong == WRONG[1] else f"?ssl_ca_certs={authority.file}"
    with (
        authority.serve(stack.valkey.port, "localhost" if wrong == WRONG[1] else "other.example") as refused,
        authority.serve(1) as accepted,
    ):
        urls = [f"amqps://u:p@localhost:{refused}//{parameters}",
                f"amqps://u:p@localhost:{accepted}//?ssl_ca_certs={authority.file}"]  # fmt: skip
        found = [
            next(iter(check_broker(load_settings(_env_file=None, database_url=database_url, broker_url=url))))
            for url in urls
        ]
        done = boot(cli.environment(stack, database_url, CELERY_BROKER_URL=urls[0]))

    assert found[0].what.startswith("the broker's certificate is refused")
    assert found[1].what == "the broker does not answer"
    check_refusal(done, "CELERY_BROKER_URL")


def test_a_store_with_the_right_certificate_is_used(authority: Authority, stack: Stack, database_url: str) -> None:
    """AWS_CA_BUNDLE is the name that boto3 and the AWS command line know."""
    with authority.serve(stack.seaweedfs.port) as port:
        env = {"AWS_ENDPOINT_URL_S3": f"https://localhost:{port}", "AWS_CA_BUNDLE": str(authority.file)}
        done = boot(cli.environment(stack, database_url, **env))

    assert (done.returncode, done.stderr) == (0, "")


def test_a_store_with_a_wrong_certificate_is_refused(
    authority: Authority, stack: Stack, database_url: str, wrong: str
) -> None:
    """A worker waited for it for ever."""
    with authority.serve(stack.seaweedfs.port, "localhost" if wrong == WRONG[1] else "other.example") as port:
        env = {"AWS_ENDPOINT_URL_S3": f"https://localhost:{port}"}
        if wrong == WRONG[0]:
            env["AWS_CA_BUNDLE"] = str(authority.file)
        done = boot(cli.environment(stack, database_url, **env))

    check_refusal(done, "AWS_ENDPOINT_URL_S3")


def boot(env: dict[str, str]) -> "fork_server.subprocess.CompletedProcess[str]":
    """Run the checks before a worker accepts work."""
    return fork_server.run(["-c", BOOT], cwd=cli.ROOT, env=env)


def check_refusal(done: "fork_server.subprocess.CompletedProcess[str]", setting: str) -> None:
    """One line, no traceback, and what to change."""
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("moorage: ")
    assert "certificate" in line
    assert setting in line
