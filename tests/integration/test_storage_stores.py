"""What moorage asks of a store works with stores that refuse or ignore a part of it (imitated: tests/support)."""

import contextlib
import hashlib
import io
import os
from dataclasses import replace

import pytest

from cli.commands.audit import describe_proof
from cli.commands.doctor.checks import check_buckets
from embedded.stack import Stack
from moorage.errors import ConfigError, StorageRefused
from moorage.settings import Settings
from storage import buckets, proofs, s3
from tasks.audit import run as audit
from tests.integration import kept_world
from tests.support import s3_stores
from tests.support.s3_stores import LimitedStore

STORES = {
    "b2": (s3_stores.B2, "md5"),
    "r2": (s3_stores.R2, "sha256"),
    "supabase": (s3_stores.SUPABASE, "md5"),
    "without-sha256-on-head": (s3_stores.WITHOUT_SHA256_ON_HEAD, "md5"),
    "without-checksums": (s3_stores.WITHOUT_CHECKSUMS, "none"),
    "without-etag": (s3_stores.WITHOUT_ETAG, "none"),
    "echoing": (s3_stores.ECHOING, "md5"),
}


@contextlib.contextmanager
def limited(stack: Stack, limits: s3_stores.Limits):
    env = stack.environment()
    with LimitedStore(stack.seaweedfs.url, env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], limits) as store:
        client = s3.ObjectStore(stack_settings(stack, stack.seaweedfs.url)).clients.authenticated()
        before = client.list_buckets()["Buckets"]
        yield store
        # SeaweedFS reserves volumes for each bucket, and a disk has room for some dozens.
        for bucket in client.list_buckets()["Buckets"]:
            if bucket["Name"].startswith("stores-") and bucket not in before:
                client.delete_bucket(Bucket=bucket["Name"])


def settings_for(stack: Stack, store: LimitedStore, **overrides):
    return stack_settings(stack, store.url, **overrides)


def stack_settings(stack: Stack, url: str, **overrides):
    env = stack.environment()
    name = f"stores-{os.urandom(6).hex()}"
    return Settings(
        _env_file=None,
        database_url="postgresql://unused@127.0.0.1/unused",
        broker_url="memory://",
        s3_endpoint_url=url,
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        **{
            "s3_public_bucket": f"{name}-public",
            "s3_private_bucket": f"{name}-private",
            "assets": "signed",
            **overrides,
        },
    )


def put(blobs: s3.ObjectStore, key: str, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    blobs.put(blobs.public_bucket, key, io.BytesIO(data), size=len(data), sha256=digest, content_type="image/png")
    return digest


@pytest.fixture(scope="module", params=STORES.values(), ids=STORES)
def known(stack, request):
    """Return a store, its settings, and the proof it should give; its buckets exist."""
    limits, proof = request.param
    with limited(stack, limits) as store:
        settings = settings_for(stack, store)
        buckets.ensure_buckets(s3.ObjectStore(settings), settings)
        yield store, settings, proof


def test_everything_works_with_what_a_store_offers(known):
    """A store that refuses one header must not make every file fail."""
    _, settings, proof = known
    blobs, data = s3.ObjectStore(settings), os.urandom(6_000_000)

    digest = put(blobs, "renders/a b.png", data)

    assert blobs.proof == proof
    stat = blobs.head(blobs.public_bucket, "renders/a b.png")
    assert (stat.size_bytes, stat.sha256) == (len(data), digest if proof == "sha256" else None)
    with blobs.open_object(blobs.public_bucket, "renders/a b.png") as opened:
        assert opened.read() == data
    with blobs.open_object(blobs.public_bucket, "renders/a b.png", byte_range=(1, 3)) as opened:
        assert opened.read() == data[1:4]
    blobs.copy(blobs.public_bucket, "renders/a b.png", blobs.private_bucket, "quarantine/renders/a b.png")
    assert [x.key for x in blobs.list_objects(blobs.private_bucket, "quarantine/")] == ["quarantine/renders/a b.png"]
    blobs.delete(blobs.public_bucket, "renders/a b.png")
    assert blobs.head(blobs.public_bucket, "renders/a b.png") is None


def test_bytes_that_changed_on_the_way_are_not_accepted(known):
    """The promise with a store that reports no digest is as strong: the object is read back."""
    store, settings, _ = known
    blobs = s3.ObjectStore(settings)
    assert blobs.proof
    store.corrupt = True
    try:
        with pytest.raises(StorageRefused, match=r"put of .*renders/1"):
            put(blobs, "renders/1", b"some bytes")
    finally:
        store.corrupt = False


def test_the_result_of_a_probe_is_remembered(known):
    """Every process needs it, and one that only reads must not write."""
    store, settings, proof = known
    later = s3.ObjectStore(settings)
    store.requests.clear()

    assert later.head(later.private_bucket, "none") is None
    assert later.proof == proof
    assert {method for method, _ in store.requests} == {"HEAD"}


@pytest.mark.parametrize("forced", ["md5", "none", "sha256"])
def test_an_operator_decides_without_a_probe(stack, forced):
    """A probe may be wrong about a store that nobody has seen."""
    with limited(stack, s3_stores.WITHOUT_SHA256_ON_HEAD) as store:
        settings = settings_for(stack, store, s3_checksums=forced)
        blobs = s3.ObjectStore(settings)
        buckets.ensure_buckets(blobs, settings)

        put(blobs, "renders/1", b"some bytes")

        assert blobs.proof == forced
        assert not [path for _, path in store.requests if "moorage-checksum" in path]
        assert bool([r for r in store.requests if r[0] == "GET" and "renders/1" in r[1]]) == (forced == "none")


def test_a_probe_again_follows_a_store_that_has_changed(stack):
    """A store may learn SHA-256; the doctor then finds it."""
    with limited(stack, s3_stores.B2) as store:
        settings = settings_for(stack, store)
        blobs = s3.ObjectStore(settings)
        buckets.ensure_buckets(blobs, settings)
        assert blobs.proof == "md5"
        store.limits = s3_stores.R2

        blobs.probe(again=True)

        assert blobs.proof == "sha256"
        assert s3.ObjectStore(settings).proof == "sha256"


def test_a_response_without_a_length_is_named(stack):
    """It was a KeyError: a traceback at the start, and a counted failure of our own for each file."""
    with limited(stack, s3_stores.WITHOUT_LENGTH) as store:
        settings = settings_for(stack, store)
        blobs = s3.ObjectStore(settings)
        buckets.ensure_buckets(blobs, settings)
        with pytest.raises(ConfigError, match="ContentLength"):
            buckets.ensure_buckets(blobs, settings)
        put(blobs, "renders/a", b"bytes")
        for read in (blobs.head, lambda *key: blobs.open_object(*key).__enter__()):
            with pytest.raises(StorageRefused, match="no ContentLength"):
                read(blobs.public_bucket, "renders/a")


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_a_wrong_setting_at_once(stack, status):
    """A proxy redirects http: to https:. botocore asked for the bucket's region until the recursion was too deep."""
    with limited(stack, s3_stores.Limits(redirect_status=status)) as store:
        settings = settings_for(stack, store)
        with pytest.raises(ConfigError, match=f"{status} .*correct AWS_ENDPOINT_URL_S3"):
            buckets.ensure_buckets(s3.ObjectStore(settings), settings)
        with pytest.raises(StorageRefused, match=f": {status} "):
            s3.ObjectStore(settings).delete("bucket", "key")

    assert len(store.requests) == 2


def test_wrong_keys_are_no_missing_permission(stack):
    """The response to a HEAD has no code: the advice was a permission, whatever was wrong with the keys."""
    with limited(stack, s3_stores.Limits()) as store:
        settings = settings_for(stack, store)
        wrong = settings.model_copy(update={"aws_access_key_id": "nobody", "s3_endpoint_url": stack.seaweedfs.url})
        with pytest.raises(ConfigError, match=r"InvalidAccessKeyId.*correct AWS_ENDPOINT_URL_S3"):
            buckets.ensure_buckets(s3.ObjectStore(wrong), wrong)


def test_a_checksum_that_is_none_is_not_trusted():
    """A traceback of base64 would be a counted failure of our own."""
    assert [proofs.decode_sha256(text) for text in ("%%%none", "abcde", "x-2", None)] == [None] * 4


def test_a_missing_permission_is_no_missing_feature(stack):
    """A store must not count as one without checksums because its keys were wrong for a minute."""
    with limited(stack, s3_stores.Limits()) as store:
        settings = settings_for(stack, store)
        buckets.ensure_buckets(s3.ObjectStore(settings), settings)
        client = s3.ObjectStore(settings).clients.authenticated()
        client.delete_object(Bucket=settings.s3_private_bucket, Key="moorage-checksum-sha256.txt")
        wrong = s3.ObjectStore(
            settings.model_copy(update={"aws_access_key_id": "nobody", "s3_endpoint_url": stack.seaweedfs.url})
        )

        with pytest.raises(StorageRefused, match="403 InvalidAccessKeyId"):
            put(wrong, "renders/1", b"some bytes")
        with pytest.raises(StorageRefused):
            wrong.probe()


@pytest.mark.parametrize("limits", [s3_stores.R2, s3_stores.SUPABASE, s3_stores.B2], ids=["r2", "supabase", "b2"])
def test_a_store_without_public_buckets_is_a_wrong_setting_at_once(stack, limits):
    """Waiting for it, as for an outage, would be waiting for ever."""
    with limited(stack, limits) as store:
        settings = settings_for(stack, store, assets="redirect")

        with pytest.raises(
            ConfigError, match=r"MOORAGE_MANAGE_BUCKETS=false and ASSET_BASE_URL.*MOORAGE_ASSETS=signed"
        ):
            buckets.ensure_buckets(s3.ObjectStore(settings), settings)


def test_the_doctor_says_how_a_store_proves_uploads(known):
    """The operator must know what the audit will cost, and what it proves."""
    _, settings, proof = known

    checks = list(check_buckets(settings))

    assert {check.level for check in checks} == {"ok"}
    assert checks[0].what == f"storage: {proofs.DESCRIPTIONS[proof]} (found by a probe)"
    assert f"files of bucket {settings.s3_public_bucket} are read by signed URLs: it need not be public" in [
        check.what for check in checks
    ]


def test_a_checksum_that_a_store_refuses_is_a_failed_check(stack):
    """A setting that was right for another store."""
    with limited(stack, s3_stores.B2) as store:
        settings = settings_for(stack, store)
        buckets.ensure_buckets(s3.ObjectStore(settings), settings)

        checks = list(check_buckets(settings.model_copy(update={"s3_checksums": "sha256"})))

    failed = [check for check in checks if check.level == "fail"]
    assert len(failed) == 2
    assert all("x-amz-checksum-sha256" in check.what and "S3_CHECKSUMS=auto" in check.advice for check in failed)


@pytest.mark.parametrize(("limits", "proof"), [STORES["r2"], STORES["b2"]], ids=["r2", "b2"])
def test_the_audit_says_what_its_digests_rest_on(stack, deps, limits, proof):
    """A sample that storage reports no digest of is not one that was compared: it is read back."""
    with limited(stack, limits) as store:
        settings = settings_for(stack, store, egress_allow=deps.settings.egress_allow)
        deps = replace(deps, settings=settings, storage=s3.ObjectStore(settings))
        buckets.ensure_buckets(deps.storage, settings)
        kept_world.kept(deps, "audited")
        sound = audit.run_audit(deps, second_look_seconds=0.0)
        key = deps.database.run(lambda conn: conn.execute("SELECT key FROM outputs").fetchone())["key"]
        with deps.storage.open_object(deps.storage.public_bucket, key) as opened:
            flipped = opened.read()[:-1] + b"!"
        put(deps.storage, key, flipped)

        damaged = audit.run_audit(deps, second_look_seconds=0.0)

    assert (sound.findings, sound.checked["sample"], sound.proof) == ([], 2, proof)
    expected = (
        "2 by storage's SHA-256" if proof == "sha256" else "2 read back, because storage reports no SHA-256 of them"
    )
    assert describe_proof(sound) == f"existence and size of objects; digests of 2: {expected}"
    assert [(str(finding.check), finding.subject) for finding in damaged.findings] == [("4 sample digest", "output")]
