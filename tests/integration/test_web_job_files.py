"""Job requests with attached files, with granian, PostgreSQL and S3."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from embedded.stack import Stack
from tests.integration import command_line as cli
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp

S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_PUBLIC_BUCKET", "S3_PRIVATE_BUCKET")
AWAY = {"REPLICATE_API_TOKEN": "r8_test", "REPLICATE_API_URL": "https://127.0.0.1:9"}
JOB = {"owner": "ada", "chain": [{"provider": "replicate", "model": "acme/picture"}]}
NAMED = {**JOB, "input": {"prompt": "p", "images": [{"file": "sketch"}, {"file": "mask"}]}}


@pytest.fixture(scope="module")
def front(stack: Stack, url: str) -> Iterator[wp.Front]:
    cli.deps(stack, url, buckets_of="attached").database.close()
    names = cli.environment(stack, url, buckets_of="attached")
    with wp.running(url, **AWAY, **{name: value for name, value in names.items() if name in S3}) as process:
        yield process


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def send(front: wp.Front, job: Any, files: dict[str, bytes], *, key: str | None = None) -> wp.Answer:
    text = job if isinstance(job, str) else json.dumps(job)
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="job"\r\n\r\n{text}\r\n'.encode()] if job else []
    for name, data in files.items():
        head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'
        parts.append(head.encode() + data + b"\r\n")
    headers = {**wp.BEARER, "content-type": "multipart/form-data; boundary=xyz"}
    headers |= {"idempotency-key": key} if key else {}
    return front.ask("POST", "/v1/jobs", b"".join([*parts, b"--xyz--\r\n"]), headers)


def test_attached_files_become_uploads_that_the_job_references(front: wp.Front, url: str) -> None:
    """One request from a browser's form is sufficient."""
    made = send(front, NAMED, {"sketch": picture("red"), "mask": picture("blue")})

    (job,) = rp.rows(url, f"SELECT fallback_chain FROM jobs WHERE id = '{made.fields.get('job_id')}'")
    first, second = job["fallback_chain"][0]["input"]["images"]
    kept = rp.rows(url, "SELECT id::text, owner FROM uploads")
    assert made.status == 202
    assert {first["upload"], second["upload"]} == {row["id"] for row in kept}
    assert {row["owner"] for row in kept} == {"ada"}


def test_an_equal_form_is_the_same_job_and_another_file_is_another_request(front: wp.Front, url: str) -> None:
    """The content of the files is part of the request."""
    files = {"sketch": picture("green"), "mask": picture("blue")}
    first = send(front, NAMED, files, key="form")
    before = rp.rows(url, "SELECT count(*) AS n FROM uploads")

    again = send(front, NAMED, files, key="form")
    other = send(front, NAMED, {**files, "sketch": picture("white")}, key="form")

    assert (first.status, again.status, other.status) == (202, 200, 409)
    assert again.fields["job_id"] == first.fields["job_id"]
    assert rp.rows(url, "SELECT count(*) AS n FROM uploads") == before


def test_files_count_by_their_names_in_any_order(front: wp.Front) -> None:
    """Sketch and mask exchanged got the first job; a retry whose client sent the parts in another order, a 409."""
    red, blue = picture("red"), picture("blue")
    first = send(front, NAMED, {"sketch": red, "mask": blue}, key="names")

    again = send(front, NAMED, {"mask": blue, "sketch": red}, key="names")
    exchanged = [
        send(front, NAMED, files, key="names")
        for files in ({"sketch": blue, "mask": red}, {"mask": red, "sketch": blue})
    ]

    assert (first.status, again.status) == (202, 200)
    assert [answer.status for answer in exchanged] == [409, 409]


@pytest.mark.parametrize(
    ("job", "files", "status", "field"),
    [
        (None, {"sketch": b"x"}, 422, "job"),
        ("{", {}, 400, None),
        ("[]", {}, 422, ""),
        (NAMED, {"sketch": b"x"}, 422, "job"),
        ({**JOB, "input": {"p": 1}}, {"sketch": b"x"}, 422, "sketch"),
        ({**JOB, "input": {"file": "sketch"}}, {"sketch": b"x"}, 422, "input"),
        ({**NAMED, "owner": ""}, {"sketch": b"x", "mask": b"x"}, 422, "owner"),
        (NAMED, {"sketch": b"no picture", "mask": b"none"}, 422, "file"),
    ],
    ids=["no-job", "cut", "list", "not-sent", "not-used", "whole-input", "bad-job", "no-picture"],
)
def test_an_invalid_form_stores_nothing(
    front: wp.Front, url: str, job: Any, files: dict[str, bytes], status: int, field: str | None
) -> None:
    """Files are decoded only after everything else is valid."""
    count = "SELECT (SELECT count(*) FROM jobs) AS jobs, (SELECT count(*) FROM uploads) AS uploads"
    before = rp.rows(url, count)

    refused = send(front, job, files)

    assert refused.status == status, refused.fields
    assert field is None or refused.fields["errors"][0]["field"] == field
    assert rp.rows(url, count) == before
