"""The command line as a person runs it: a process with an environment, against the embedded servers."""

import base64
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import providers
from db.connection import Database
from egress.guard import EgressGuard
from embedded import ports
from embedded.stack import Stack
from media.limits import Limits
from moorage.model import Registration
from moorage.settings import load_settings
from storage import buckets, s3
from tasks.jobs import create
from tasks.step import Deps, build_retry_policy
from tests.support import fork_server

ROOT = Path(__file__).resolve().parents[2]
SECRET = "whsec_" + base64.b64encode(b"moorage-tests-sign-with-this-key").decode()


def environment(stack: Stack, database_url: str, *, buckets_of: str = "moorage", **more: str) -> dict[str, str]:
    """Return a whole environment: the servers, one database, two buckets, a secret, nothing of the caller's own."""
    return {
        "PATH": os.environ["PATH"],
        **stack.environment(),
        "DATABASE_URL": database_url,
        "S3_PUBLIC_BUCKET": f"{buckets_of}-public",
        "S3_PRIVATE_BUCKET": f"{buckets_of}-private",
        "REPLICATE_WEBHOOK_SECRET": SECRET,
        **more,
    }


def run(env: Mapping[str, str], *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `moorage ARGS` to its end."""
    return fork_server.run(["-m", "cli.main", *args], env=env, cwd=ROOT, stdin=stdin)


def deps(stack: Stack, database_url: str, *, buckets_of: str = "moorage") -> Deps:
    """Return what the commands work with, the buckets made; close its database afterwards."""
    env = environment(stack, database_url, buckets_of=buckets_of)
    settings = load_settings(
        _env_file=None,
        database_url=env["DATABASE_URL"],
        broker_url=env["CELERY_BROKER_URL"],
        s3_endpoint_url=env["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        s3_public_bucket=env["S3_PUBLIC_BUCKET"],
        s3_private_bucket=env["S3_PRIVATE_BUCKET"],
        replicate_webhook_secret=SECRET,
    )
    limits = Limits.from_settings(settings)
    blobs = s3.ObjectStore(settings)
    buckets.ensure_buckets(blobs, settings)
    return Deps(
        settings=settings,
        database=Database(database_url),
        storage=blobs,
        providers=providers.load(settings),
        session=EgressGuard(()).new_session(limits),
        limits=limits,
        policy=build_retry_policy(settings),
    )


def register_one(deps: Deps, external_id: str = "abc", **asked: Any) -> create.CreatedJob:
    """Register a prediction at Replicate."""
    wanted = Registration(provider="replicate", external_id=external_id, **{"owner": "tests", **asked})
    return create.register_prediction(deps.database, deps.settings, deps.providers["replicate"], wanted)


def nowhere() -> str:
    """Return an address and port where nobody listens."""
    return f"127.0.0.1:{ports.reserve(1)[0]}"
