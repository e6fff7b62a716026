"""Every way in which boto3 finds credentials reaches the store, with the session token of temporary ones."""

import hashlib
import json
import os
import sys

import pytest
from botocore.credentials import SSOProvider

from moorage import settings as settings_module
from storage import s3
from tests.support.aws_identity import ACCESS_KEY, SECRET_KEY, IdentityServer
from tests.support.s3_stores import LimitedStore, Limits

START_URL = "https://moorage.example/start"


@pytest.fixture(scope="module")
def identity():
    with IdentityServer() as server:
        yield server


@pytest.fixture(scope="module")
def store(stack):
    env = stack.environment()
    with LimitedStore(stack.seaweedfs.url, env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], Limits()) as running:
        yield running


@pytest.fixture
def use(monkeypatch, tmp_path, store, identity):
    """Return a way to use storage with these names in the environment; returns the credentials that the store got."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "postgresql://unused@127.0.0.1/unused")
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for service in ("STS", "SSO"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", identity.url)

    def run(**names):
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        store.credentials.clear()
        blobs = s3.ObjectStore(settings_module.load_settings())
        blobs.clients.authenticated().list_buckets()
        signed = blobs.presign_get("moorage-public", "renders/1", 60)
        ((access_key, token),) = store.credentials
        assert f"X-Amz-Credential={access_key}" in signed
        assert ("X-Amz-Security-Token" in signed) == (token is not None)
        return access_key, token

    return run


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_keys_without_a_token_are_used_as_they_are(use):
    """Most stores know nothing else."""
    assert use(AWS_ACCESS_KEY_ID="AKIA1", AWS_SECRET_ACCESS_KEY="s") == ("AKIA1", None)


@pytest.mark.parametrize("name", ["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])
def test_a_session_token_is_sent(use, name):
    """Temporary keys without their token are refused as unknown."""
    assert use(AWS_ACCESS_KEY_ID="ASIA1", AWS_SECRET_ACCESS_KEY="s", **{name: "t1"}) == ("ASIA1", "t1")


def test_a_session_token_is_read_from_a_file(use, tmp_path):
    """Secrets of an orchestrator are files."""
    names = {"AWS_ACCESS_KEY_ID": "ASIA2", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t2"}

    assert use(**{f"{name}_FILE": write(tmp_path / name, value) for name, value in names.items()}) == ("ASIA2", "t2")


def test_a_web_identity_is_exchanged(use, tmp_path):
    """A service account of Kubernetes (IRSA): only AWS_REGION may be set, which botocore does not read."""
    names = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_REGION": "eu-west-3"}

    used = use(**names, AWS_WEB_IDENTITY_TOKEN_FILE=write(tmp_path / "token", "a-jwt"))

    assert used == (ACCESS_KEY, "AssumeRoleWithWebIdentity:a-jwt")


def test_a_role_of_a_profile_is_assumed(use, tmp_path):
    """AWS_PROFILE, with keys that may only assume a role."""
    text = "[base]\naws_access_key_id=AKIA3\naws_secret_access_key=s\n[work]\nrole_arn=arn:aws:iam::1:role/r\n"
    path = write(tmp_path / "credentials", f"{text}source_profile=base\n")

    assert use(AWS_SHARED_CREDENTIALS_FILE=path, AWS_PROFILE="work") == (ACCESS_KEY, "AssumeRole")


def test_a_single_sign_on_is_used(use, tmp_path, monkeypatch):
    """`aws sso login` leaves a token for the profile."""
    text = f"[default]\nsso_start_url={START_URL}\nsso_region=eu-west-3\nsso_account_id=1\nsso_role_name=r\n"
    cache = tmp_path / ".aws/sso/cache" / f"{hashlib.sha1(START_URL.encode(), usedforsecurity=False).hexdigest()}.json"
    monkeypatch.setattr(SSOProvider, "_SSO_TOKEN_CACHE_DIR", str(cache.parent))  # below HOME, read at its import
    write(cache, json.dumps({"startUrl": START_URL, "accessToken": "a", "expiresAt": "2099-01-01T00:00:00UTC"}))

    assert use(AWS_CONFIG_FILE=write(tmp_path / "config", text)) == (ACCESS_KEY, "sso:a")


def test_the_agent_of_a_container_is_asked(use, tmp_path, identity):
    """ECS, and pod identities of EKS; keys that a compose file empties are none."""
    used = use(
        **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), ""),
        AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{identity.url}/v1/credentials",
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=write(tmp_path / "agent", "b"),
    )

    assert used == (ACCESS_KEY, "container:b")


def test_a_program_is_asked(use, tmp_path):
    """`credential_process`: any other source."""
    keys = {"Version": 1, "AccessKeyId": ACCESS_KEY, "SecretAccessKey": SECRET_KEY, "SessionToken": "p"}
    script = write(tmp_path / "keys.py", f"print({json.dumps(json.dumps(keys))})")

    text = f"[default]\ncredential_process={sys.executable} {script}\n"

    assert use(AWS_CONFIG_FILE=write(tmp_path / "config", text)) == (ACCESS_KEY, "p")
