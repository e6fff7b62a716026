"""Buckets are made and opened once, by any number of processes, and never behind an operator's back."""

import itertools
import json
import multiprocessing
import os
import urllib.error
import urllib.request
import uuid
from hashlib import sha256

import pytest

from embedded.seaweedfs import Seaweedfs
from moorage.errors import ConfigError, StorageRefused, StorageUnavailable
from moorage.settings import Settings
from storage import buckets, s3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seaweedfs")
    server = LimitedSeaweedfs(folder / "data", "moorage", "a-secret-for-tests", folder / "log")
    server.start()
    yield server
    server.stop()


class LimitedSeaweedfs(Seaweedfs):
    """A server that also knows users who may not manage buckets: one may read and write objects, one may read them."""

    def _identities(self):
        known = super()._identities()
        for name, actions in (("limited", ["Read", "Write", "List"]), ("reader", ["Read", "List"])):
            keys = {"accessKey": name, "secretKey": "a-secret-for-tests"}
            known["identities"].append({"name": name, "credentials": [keys], "actions": actions})
        return known


@pytest.fixture
def settings(server):
    """Settings with buckets of this test's own, which do not exist yet."""
    name = uuid.uuid4().hex[:12]
    return settings_for(server.url, s3_public_bucket=f"public-{name}", s3_private_bucket=f"private-{name}")


def settings_for(endpoint, **overrides):
    return Settings(
        _env_file=None,
        database_url="postgresql://unused@127.0.0.1/unused",
        broker_url="memory://",
        s3_endpoint_url=endpoint,
        aws_access_key_id="moorage",
        aws_secret_access_key="a-secret-for-tests",
        **overrides,
    )


def anonymous_status(settings, bucket, key="moorage-readable.txt", method="GET"):
    request = urllib.request.Request(f"{settings.s3_endpoint_url}/{bucket}/{key}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_missing_buckets_are_created_and_one_is_public(settings):
    """A newcomer has no buckets; the first start must be enough."""
    done = buckets.ensure_buckets(s3.ObjectStore(settings), settings)

    assert done == [
        f"created bucket {settings.s3_public_bucket}",
        f"created bucket {settings.s3_private_bucket}",
        f"allowed public read access to {settings.s3_public_bucket}",
    ]
    assert anonymous_status(settings, settings.s3_public_bucket) == 200
    assert anonymous_status(settings, settings.s3_private_bucket) == 403


def test_anyone_may_read_and_nothing_else(settings):
    """A bucket that lists or takes files from anyone is a leak or an open drop."""
    buckets.ensure_buckets(s3.ObjectStore(settings), settings)
    public = settings.s3_public_bucket

    assert anonymous_status(settings, public, key="?list-type=2") == 403
    assert anonymous_status(settings, public, method="PUT") == 403
    assert anonymous_status(settings, public, method="DELETE") == 403
    assert anonymous_status(settings, public) == 200


def test_a_second_time_changes_nothing(settings):
    """Every process does this at its start."""
    blobs = s3.ObjectStore(settings)
    buckets.ensure_buckets(blobs, settings)

    assert buckets.ensure_buckets(blobs, settings) == []


def ensure_in_process(settings, barrier, answers):
    barrier.wait(30)
    answers.put(buckets.ensure_buckets(s3.ObjectStore(settings), settings))


def test_many_processes_may_start_at_once(settings):
    """Receiver, workers and beat come up together on a fresh store."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=ensure_in_process, args=(settings, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()

    done = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)

    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert f"created bucket {settings.s3_private_bucket}" in itertools.chain(*done)
    assert anonymous_status(settings, settings.s3_public_bucket) == 200


def test_a_bucket_that_the_store_does_not_find_yet_is_waited_for(settings, monkeypatch):
    """On a busy machine that took SeaweedFS more than ten seconds, and the worker ended for a wrong setting."""
    exists, looks = buckets._exists, []

    def find(store, bucket):
        looks.append(bucket)
        return len(looks) > 2 and exists(store, bucket)

    monkeypatch.setattr(buckets, "_exists", find)
    monkeypatch.setattr(buckets, "_POLL_SECONDS", 0.01)
    named = settings.model_copy(update={"s3_public_bucket": "slow-public", "s3_private_bucket": "slow-private"})

    with pytest.raises(StorageUnavailable, match="slow-public exists, but is not found yet"):
        buckets.ensure_buckets(s3.ObjectStore(named), named, wait_seconds=0.0)
    assert "created bucket slow-private" in buckets.ensure_buckets(s3.ObjectStore(named), named)


def test_nothing_is_touched_when_an_operator_manages_the_buckets(settings):
    """Their rules may differ from ours."""
    settings = settings.model_copy(update={"manage_buckets": False})
    blobs = s3.ObjectStore(settings)

    assert buckets.ensure_buckets(blobs, settings) == []
    with pytest.raises(StorageRefused, match="404"):
        blobs.check_connection()


def test_an_operators_policy_is_kept(settings):
    """A public read policy must not replace the rules of an operator."""
    blobs = s3.ObjectStore(settings)
    client = blobs.clients.authenticated()
    client.create_bucket(Bucket=settings.s3_public_bucket)
    theirs = {
        "Sid": "Theirs",
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{settings.s3_public_bucket}/locked/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [theirs]})
    client.put_bucket_policy(Bucket=settings.s3_public_bucket, Policy=policy)

    buckets.ensure_buckets(blobs, settings)

    found = json.loads(client.get_bucket_policy(Bucket=settings.s3_public_bucket)["Policy"])["Statement"]
    assert [statement["Sid"] for statement in found] == ["Theirs", "MoorageAnyoneReads"]


def test_a_private_bucket_that_anyone_reads_refuses_the_start(settings):
    """Input files are people's own photographs."""
    blobs = s3.ObjectStore(settings)
    buckets.ensure_buckets(blobs, settings)
    names = {"s3_private_bucket": settings.s3_public_bucket, "s3_public_bucket": f"{settings.s3_public_bucket}-other"}
    swapped = settings.model_copy(update=names)

    with pytest.raises(ConfigError, match=r"anyone can read the private bucket .* S3_PRIVATE_BUCKET"):
        buckets.ensure_buckets(s3.ObjectStore(swapped), swapped)

    assert anonymous_status(settings, swapped.s3_public_bucket) == 403, "opened before the refusal"


def test_a_missing_permission_to_make_buckets_is_named(settings):
    """The operator must read what to grant, not a stack trace."""
    limited = settings.model_copy(update={"aws_access_key_id": "limited"})

    with pytest.raises(ConfigError, match=rf"{settings.s3_public_bucket}.*s3:CreateBucket.*MOORAGE_MANAGE_BUCKETS"):
        buckets.ensure_buckets(s3.ObjectStore(limited), limited)


def test_a_missing_permission_to_open_the_bucket_is_named(settings):
    """A bucket that exists but cannot be opened is the usual case on AWS."""
    client = s3.ObjectStore(settings).clients.authenticated()
    client.create_bucket(Bucket=settings.s3_public_bucket)
    client.create_bucket(Bucket=settings.s3_private_bucket)
    limited = settings.model_copy(update={"aws_access_key_id": "limited"})

    with pytest.raises(ConfigError, match=r"s3:(Get|Put)BucketPolicy"):
        buckets.ensure_buckets(s3.ObjectStore(limited), limited)


def test_a_missing_permission_to_write_is_named(settings):
    """The probe of checksums is the first that writes; whoever only reads is not stopped by it."""
    client = s3.ObjectStore(settings).clients.authenticated()
    client.create_bucket(Bucket=settings.s3_public_bucket)
    client.create_bucket(Bucket=settings.s3_private_bucket)
    client.put_object(Bucket=settings.s3_public_bucket, Key="renders/1", Body=b"x")
    reader = s3.ObjectStore(settings.model_copy(update={"aws_access_key_id": "reader"}))

    with pytest.raises(ConfigError, match=rf"{settings.s3_private_bucket}.*s3:PutObject"):
        buckets.ensure_buckets(reader, settings)
    assert reader.head(settings.s3_public_bucket, "renders/1").size_bytes == 1


def test_an_unavailable_store_is_not_a_wrong_setting(settings):
    """A worker that starts before storage waits for it; the operator has nothing to change."""
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})

    with pytest.raises(StorageUnavailable):
        buckets.ensure_buckets(s3.ObjectStore(away), away)


@pytest.mark.parametrize("assets", ["signed", "stream"])
def test_no_bucket_is_opened_if_none_need_be_public(settings, assets):
    """Files are then read through the API or by signed URLs only."""
    settings = settings.model_copy(update={"assets": assets})
    blobs = s3.ObjectStore(settings)

    done = buckets.ensure_buckets(blobs, settings)

    assert done == [f"created bucket {settings.s3_public_bucket}", f"created bucket {settings.s3_private_bucket}"]
    blobs.put(settings.s3_public_bucket, "renders/1", b"x", size=1, sha256=sha256(b"x").hexdigest(), content_type="a/b")
    assert anonymous_status(settings, settings.s3_public_bucket, key="renders/1") == 403
    with urllib.request.urlopen(blobs.presign_get(settings.s3_public_bucket, "renders/1", 60), timeout=60) as answer:
        assert answer.read() == b"x"


def test_credentials_that_cannot_be_found_are_a_wrong_setting(settings, monkeypatch):
    """Without any, a worker waited for ever as for an outage."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    none = settings.model_copy(update={"aws_access_key_id": None, "aws_secret_access_key": None})

    with pytest.raises(ConfigError, match=r"Unable to locate credentials \(correct .*credentials"):
        buckets.ensure_buckets(s3.ObjectStore(none), none)
