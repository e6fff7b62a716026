"""Blobs against a real SeaweedFS."""

import base64
import hashlib
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from embedded.seaweedfs import Seaweedfs
from moorage.errors import StorageRefused, StorageUnavailable
from moorage.settings import Settings
from storage import buckets, proofs, s3, s3_clients
from storage.errors import ObjectMissing


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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seaweedfs")
    server = Seaweedfs(folder / "data", "moorage", "a-secret-for-tests", folder / "log")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def settings(server):
    return settings_for(server.url)


@pytest.fixture(scope="module")
def blobs(settings):
    blobs = s3.ObjectStore(settings)
    buckets.ensure_buckets(blobs, settings)
    return blobs


def put(blobs, key, data, **options):
    digest = hashlib.sha256(data).hexdigest()
    arguments = {"size": len(data), "sha256": digest, "content_type": "image/png", **options}
    blobs.put(blobs.public_bucket, key, io.BytesIO(data), **arguments)
    return digest


def test_what_is_put_is_read_back_whole(blobs):
    """The promise starts here: the same bytes come back."""
    data = os.urandom(300_000)
    put(blobs, "round/trip.png", data)

    with blobs.open_object(blobs.public_bucket, "round/trip.png") as opened:
        read = opened.read(10) + b"".join(opened.iterate_chunks())

    assert read == data
    assert opened.size_bytes == len(data)
    assert opened.content_type == "image/png"


def test_head_proves_the_bytes(blobs):
    """The audit compares the digest that storage reports with the one taken while downloading."""
    digest = put(blobs, "proved.png", b"some bytes", cache_control="public, max-age=31536000, immutable")

    assert blobs.head(blobs.public_bucket, "proved.png") == s3.ObjectStat(10, digest)


def test_an_object_put_in_parts_claims_no_digest(blobs):
    """The checksum of an upload in parts is not the digest of the bytes and must not be taken for it."""
    client = blobs.clients.authenticated()
    where = {"Bucket": blobs.public_bucket, "Key": "parts"}
    upload = client.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]
    digest = base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    part = client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"x", ChecksumSHA256=digest)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": digest}]}
    client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)

    assert blobs.head(blobs.public_bucket, "parts").sha256 is None


def test_bytes_of_another_digest_are_refused(blobs):
    """A file that changed on our disk must not be stored under the digest it had before."""
    with pytest.raises(StorageRefused, match=r"put of moorage-public/wrong\.png: 400 BadDigest"):
        put(blobs, "wrong.png", b"some bytes", sha256=hashlib.sha256(b"other bytes").hexdigest())

    assert blobs.head(blobs.public_bucket, "wrong.png") is None


def test_bytes_are_put_as_they_are(blobs):
    """Thumbnails are put from memory."""
    digest = hashlib.sha256(b"thumb").hexdigest()

    blobs.put(blobs.public_bucket, "t.webp", b"thumb", size=5, sha256=digest, content_type="image/webp")

    assert blobs.head(blobs.public_bucket, "t.webp") == s3.ObjectStat(5, digest)


def test_a_missing_object_is_distinguished(blobs):
    """A spooled input that is gone is a permanent failure, not an outage."""
    assert blobs.head(blobs.private_bucket, "inputs/none.png") is None
    with (
        pytest.raises(ObjectMissing, match=r"get of moorage-private/inputs/none\.png: 404 NoSuchKey"),
        blobs.open_object(blobs.private_bucket, "inputs/none.png"),
    ):
        pass


def test_deleting_twice_is_the_same_as_once(blobs):
    """A discard step that is repeated after a crash must succeed."""
    put(blobs, "gone.png", b"x")

    blobs.delete(blobs.public_bucket, "gone.png")
    blobs.delete(blobs.public_bucket, "gone.png")

    assert blobs.head(blobs.public_bucket, "gone.png") is None


def test_a_bucket_that_is_not_there_is_refused_by_name(server, blobs):  # which has created the private bucket
    """A misspelt bucket must not look like an outage that will pass."""
    misspelt = s3.ObjectStore(settings_for(server.url, s3_public_bucket="misspelt"))

    with pytest.raises(StorageRefused, match=r"put of misspelt/a\.png: 404 NoSuchBucket"):
        put(misspelt, "a.png", b"x")
    with pytest.raises(StorageRefused, match="head of bucket misspelt"):
        misspelt.check_connection()


def test_wrong_keys_are_refused(server):
    """Retrying with a wrong secret can only make it worse."""
    blobs = s3.ObjectStore(settings_for(server.url).model_copy(update={"aws_access_key_id": "nobody"}))

    with pytest.raises(StorageRefused, match="checksum probe of bucket moorage-private: 403 InvalidAccessKeyId"):
        put(blobs, "a.png", b"x")


def test_a_listing_goes_on_past_a_page(blobs):
    """S3 answers with at most 1,000 keys; a listing that stops there hides orphans and losses."""
    client = blobs.clients.authenticated()
    for number in range(1010):
        client.put_object(Bucket=blobs.private_bucket, Key=f"many/{number:04}", Body=b"")

    everything = [item.key for item in blobs.list_objects(blobs.private_bucket, "many/")]
    rest = [item.key for item in blobs.list_objects(blobs.private_bucket, "many/", start_after="many/1004")]

    assert everything == [f"many/{number:04}" for number in range(1010)]
    assert rest == [f"many/{number:04}" for number in range(1005, 1010)]


def test_a_listing_has_size_and_age(blobs):
    """The orphan sweep spares what is young."""
    put(blobs, "aged/one.png", b"12345")

    (item,) = blobs.list_objects(blobs.public_bucket, "aged/")

    assert item.size_bytes == 5
    assert abs(time.time() - item.modified_at.timestamp()) < 100


def test_a_presigned_url_opens_a_private_object(blobs):
    """Browsers get private files by URL, without our keys, and only by one of ours."""
    blobs.put(
        blobs.private_bucket, "p", b"secret", size=6, sha256=hashlib.sha256(b"secret").hexdigest(), content_type="a/b"
    )
    url = blobs.presign_get(blobs.private_bucket, "p", 60)

    with urllib.request.urlopen(url, timeout=60) as answer:
        assert answer.read() == b"secret"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url.split("?")[0], timeout=60)
    refused.value.close()
    assert refused.value.code == 403


def test_an_asset_url_is_readable_by_anyone(blobs):
    """It is what applications and their pages get."""
    put(blobs, "renders/a b.png", b"picture", cache_control="public, max-age=60")

    with urllib.request.urlopen(blobs.build_asset_url("renders/a b.png"), timeout=60) as answer:
        assert answer.read() == b"picture"
        assert answer.headers["Cache-Control"] == "public, max-age=60"
        assert answer.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        ({"asset_base_url": "https://cdn.example/files"}, "https://cdn.example/files/"),
        ({"s3_public_endpoint_url": "https://s3.example"}, "https://s3.example/moorage-public/"),
        ({"s3_endpoint_url": None}, "https://moorage-public.s3.eu-west-3.amazonaws.com/"),
        ({"s3_addressing_style": "virtual"}, "http://moorage-public.s3.internal:8333/"),
        ({}, "http://s3.internal:8333/moorage-public/"),
    ],
)
def test_asset_urls_follow_the_settings(overrides, start):
    """The address that workers use is often not the one that browsers reach."""
    settings = settings_for("http://s3.internal:8333", aws_region="eu-west-3").model_copy(update=overrides)

    blobs = s3.ObjectStore(settings)

    assert blobs.build_asset_url("renders/1") == start + "renders/1"
    if "asset_base_url" not in overrides:
        assert blobs.presign_get(blobs.public_bucket, "renders/1", 60).startswith(start)


def test_storage_that_is_down_is_detected_quickly(server, blobs):
    """Workers must notice at once, and must not count it against the output."""
    server.kill()
    try:
        begun = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"put of moorage-public/down\.png"):
            put(blobs, "down.png", b"x")
        with pytest.raises(StorageUnavailable, match="head of bucket moorage-public"):
            blobs.check_connection()
        assert time.monotonic() - begun < 15
    finally:
        server.restart()

    blobs.check_connection()


def test_storage_that_hangs_in_a_read_is_an_outage(server, blobs):
    """A store that stops in the middle of an object must not look like a short file."""
    put(blobs, "hangs.png", os.urandom(30_000_000))

    with blobs.open_object(blobs.public_bucket, "hangs.png") as opened:
        opened.read(1000)
        server.kill()
        try:
            with pytest.raises(StorageUnavailable, match=r"read of moorage-public/hangs\.png"):
                list(opened.iterate_chunks())
        finally:
            server.restart()


def test_what_was_acknowledged_survives_a_kill(server, blobs):
    """An output is recorded as kept right after the answer; the object must be there from then on."""
    digest = put(blobs, "survives.png", os.urandom(1_000_000))

    server.kill()
    server.restart()

    assert blobs.head(blobs.public_bucket, "survives.png").sha256 == digest


def test_clients_share_the_parsed_description_of_the_api(blobs):
    """It takes a tenth of a second to parse, in each child of a worker if it were not shared."""
    assert blobs.clients.authenticated()._loader is blobs.clients.anonymous()._loader


def test_a_client_is_not_shared_across_a_fork(blobs):
    """Two processes on one connection would mix up their answers; Celery forks its children."""
    put(blobs, "forked.png", b"x")  # the parent has an open connection
    parent = id(blobs.clients.authenticated())
    child = os.fork()
    if child == 0:
        fresh = id(blobs.clients.authenticated()) != parent
        os._exit(0 if fresh and blobs.head(blobs.public_bucket, "forked.png") else 1)

    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0


FLAT = """
import hashlib, sys, tempfile
from moorage.settings import Settings
from storage import s3
blobs = s3.ObjectStore(Settings(_env_file=None, database_url="postgresql://u@h/d", broker_url="memory://"))
def store(megabytes):
    with tempfile.TemporaryFile() as file:
        digest = hashlib.sha256()
        for _ in range(megabytes):
            digest.update(b"m" * 1_000_000)
            file.write(b"m" * 1_000_000)
        blobs.put("moorage-public", "large.mp4", file, size=megabytes * 1_000_000, sha256=digest.hexdigest(),
                  content_type="video/mp4")
    return digest.hexdigest()
def peak_kb():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
store(1)
before = peak_kb()
digest = store(int(sys.argv[1]))
grown = peak_kb() - before
stat = blobs.head("moorage-public", "large.mp4")
assert stat.sha256 == (None if blobs.proof == "none" else digest), stat
assert stat.size_bytes == int(sys.argv[1]) * 1_000_000, stat
print(grown)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("checksums", "megabytes"), [("sha256", "60"), ("none", "30")])
def test_a_large_video_is_put_in_flat_memory(server, blobs, checksums, megabytes):
    """A worker that reads a 500 MB video into memory is killed by the kernel; also one that reads it back."""
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_ACCESS_KEY_ID": "moorage",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "S3_CHECKSUMS": checksums,
    }

    done = subprocess.run(
        [sys.executable, "-c", FLAT, megabytes], env=environment, capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8_000  # kB


def test_storage_that_answers_nothing_is_an_outage(server, monkeypatch):
    """A store that accepts connections and then stalls must end in an error that is tried again."""
    monkeypatch.setattr(s3_clients, "_READ_SECONDS", 0.5)
    stalled = s3.ObjectStore(settings_for(server.url))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StorageUnavailable, match="head of bucket moorage-public"):
            stalled.check_connection()
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("checksums", ["sha256", "none"])
def test_a_transfer_that_takes_too_long_is_an_outage(server, blobs, monkeypatch, checksums):
    """Storage that is slow for a day must not end a file: the limit of a step would count a crash of it each time."""
    slow = s3.ObjectStore(settings_for(server.url, s3_checksums=checksums))
    data = b"x" if checksums == "none" else bytes(s3_clients.WHOLE_BYTES + 1)
    digest, arguments = hashlib.sha256(data).hexdigest(), {"size": len(data), "content_type": "video/mp4"}
    slow.put(slow.public_bucket, "slow.mp4", io.BytesIO(data), sha256=digest, **arguments)
    monkeypatch.setattr(proofs, "TRANSFER_SECONDS", 0.0, raising=False)

    with pytest.raises(StorageUnavailable, match=r"(put|read back) of moorage-public/slow\.mp4"):
        slow.put(slow.public_bucket, "slow.mp4", io.BytesIO(data), sha256=digest, **arguments)
    with (
        slow.open_object(slow.public_bucket, "slow.mp4") as opened,
        pytest.raises(StorageUnavailable, match=r"read of moorage-public/slow\.mp4: not complete"),
    ):
        list(opened.iterate_chunks())


def test_a_file_is_put_from_its_start(blobs):
    """A file that was just hashed stands at its end; without a rewind the put would wait for the time-out."""
    file = io.BytesIO(b"some bytes")
    file.read()
    digest = hashlib.sha256(b"some bytes").hexdigest()
    begun = time.monotonic()

    blobs.put(blobs.public_bucket, "rewound", file, size=10, sha256=digest, content_type="image/png")

    assert time.monotonic() - begun < 15
    assert blobs.head(blobs.public_bucket, "rewound").sha256 == digest
