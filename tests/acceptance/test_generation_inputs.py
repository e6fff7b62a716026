"""Files of ours as the input of a generation: uploads, files sent along, and pictures that were kept before."""

import hashlib
import io
import json

from PIL import Image

from tests.acceptance.api_caller import application, entry, owner

IMAGE_TO_VIDEO = "standin/image-to-video"
GPS_IFD, MAKE = 0x8825, 0x010F


def photo():
    """Return a JPEG as a phone makes it: with its maker's name and the place."""
    made, exif = io.BytesIO(), Image.Exif()
    exif[MAKE] = "a maker"
    exif.get_ifd(GPS_IFD)[1] = "N"
    Image.linear_gradient("L").convert("RGB").save(made, "JPEG", exif=exif)
    return made.getvalue()


def with_image(reference, **fields):
    asked = entry(**fields)
    asked["input"]["image"] = reference
    return asked


def fetched(world, job):
    """Return what the provider fetched for a job's one prediction: status and sha256 each."""
    (prediction,) = job["predictions"]
    lines = world.standin.get_ledger()["lines"]
    inputs = [line for line in lines if line["kind"] == "input" and line["prediction"] == prediction["external_id"]]
    return [(line["status"], line["sha256"]) for line in inputs]


def test_a_provider_fetches_an_upload_that_an_input_names(world):
    """Private, freed of metadata, and yet readable by the one who is to work on it."""
    ada = owner(world)
    sent = photo()

    upload = ada.ask("POST", "/uploads", data=sent, headers={"Content-Type": "application/octet-stream"}).json()
    job = ada.await_end(ada.order(with_image({"upload": upload["upload_id"]})))

    assert job["state"] == "succeeded"
    assert fetched(world, job) == [(200, upload["sha256"])]
    assert upload["sha256"] != hashlib.sha256(sent).hexdigest()


def test_files_may_be_sent_along_with_an_order(world):
    """One request is what a form in a browser can send."""
    ada = owner(world)
    chain = [with_image({"file": "room"})]

    answer = ada.ask(
        "POST",
        "/jobs",
        data={"job": json.dumps({"owner": ada.owner, "chain": chain})},
        files={"room": ("room.jpg", photo(), "image/jpeg")},
    )

    assert answer.status_code == 202, answer.text
    job = ada.await_end(answer.json()["job_id"])
    alone = ada.ask("POST", "/uploads", data=photo()).json()  # comes to the same bytes
    assert job["state"] == "succeeded"
    assert fetched(world, job) == [(200, alone["sha256"])]


def test_a_kept_picture_becomes_a_video_by_a_model_that_takes_one(world):
    """Image-to-video: the picture itself, not its provider's URL, which may be dead by then."""
    ada = owner(world)
    picture = ada.await_end(ada.order(entry("fal")))["variants"][0]
    source = {"variant": f"{ada.get(f'/renders?owner={ada.owner}')['renders'][0]['render_id']}/0"}
    asked = {"image": source, "prompt": "the boat leaves"}

    offered = ada.get("/models?kind=video&provider=replicate")["models"]
    job_id = ada.order({"provider": "replicate", "model": "auto", "input": asked}, kind="video")
    job = ada.await_end(job_id)

    assert IMAGE_TO_VIDEO in {model["name"] for model in offered}
    assert [(one["model"], one["state"]) for one in job["predictions"]] == [(IMAGE_TO_VIDEO, "succeeded")]
    assert fetched(world, job) == [(200, picture["sha256"])]
    (video,) = job["variants"]
    assert (video["media"], video["content_type"]) == ("video", "video/mp4")


def test_a_file_that_is_not_the_owners_is_refused_as_if_there_were_none(world):
    """An id that leaked opens nothing."""
    ada, eve = owner(world), owner(world)
    upload = ada.ask("POST", "/uploads", data=photo()).json()
    render_id = ada.order(entry())
    ada.await_end(render_id)

    stolen = [{"upload": upload["upload_id"]}, {"variant": f"{render_id}/0"}]
    answers = [
        eve.ask("POST", "/jobs", json={"owner": eve.owner, "chain": [with_image(reference)]}) for reference in stolen
    ]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert [answer.json()["errors"][0]["field"] for answer in answers] == ["chain[0].input.image"] * 2
    assert application(world).get(f"/jobs?owner={eve.owner}")["jobs"] == []
