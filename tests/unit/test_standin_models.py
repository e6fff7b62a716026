"""The stand-in's models, its submission faults and the totals of its ledger, without a process."""

from types import SimpleNamespace
from typing import Any

import pytest

from moorage import settings
from simulation.provider import ledger, models, pictures, script
from simulation.provider.http_types import Response
from simulation.provider.predictions import Dialect, Predictions

PICTURES, FAILING, VIDEO = (models.MODELS[f"standin/{name}"] for name in ("pictures", "failing", "text-to-video"))
FILES = ("a.png", "b.mp4")


def parse(model: models.Model | None, input_: dict[str, Any], files: tuple[str, ...] = ()) -> script.Script:
    return script.parse_script(input_.get("standin"), files, models.script_defaults(model, input_, files))


@pytest.mark.parametrize(
    ("input_", "expected"),
    [
        ({}, (1, None, None)),
        ({"num_outputs": 3, "seed": 7}, (3, 7, None)),
        ({"num_images": 2, "image_size": {"width": 640, "height": 480}}, (2, None, 640)),
        ({"n": 4, "size": "256x128"}, (4, None, 256)),
        ({"image_size": "square_hd", "size": "auto", "seed": None, "num_outputs": True}, (1, None, None)),
        ({"num_outputs": 500, "width": 5, "height": 5}, (10, None, None)),
        ({"num_outputs": 3, "standin": {"outputs": 1}}, (1, None, None)),
    ],
)
def test_an_input_sets_number_and_size_of_the_outputs(input_, expected):
    """Each provider has its own fields for it; a script overrides them all."""
    parsed = parse(PICTURES, input_)

    assert (parsed.outputs, parsed.seed, parsed.width_px) == expected


def test_a_folder_serves_each_kind_of_model_its_own_files():
    """A video among the pictures would be a fault that no test selected."""
    assert parse(PICTURES, {}, FILES).formats == ("a.png",)
    assert parse(VIDEO, {}, FILES).formats == ("b.mp4",)
    assert parse(None, {}, FILES).formats == FILES
    assert parse(VIDEO, {}, ("a.png",)).formats == pictures.VIDEO_FORMATS


def test_a_model_is_found_by_a_name_with_version_or_path():
    """fal's applications have paths, Replicate's models versions."""
    assert models.find_by_name("standin/failing/fast") is models.find_by_name("standin/failing:abc") is FAILING
    assert models.find_by_version(FAILING.version) is models.find_by_version("standin/failing") is FAILING
    assert models.find_by_name("acme/pier") is models.find_by_version("5c7d") is None


def test_every_model_accepts_the_minimal_input_of_its_schema():
    """A schema that no input satisfies would only show as a rejected submission."""
    picture = "https://example.com/a.png"
    smallest = {"prompt": "x", "image": picture, "input_image": picture, "start_image": picture}

    for model in models.MODELS.values():
        input_ = {name: smallest[name] for name in model.required}
        assert models.find_violations(model.fields, model.required, input_) == []


def test_null_is_valid_only_for_nullable_fields():
    """Applications send null for fields that they leave unset."""
    input_ = {"prompt": None, "seed": None}

    assert [name for name, _ in models.find_violations(PICTURES.fields, PICTURES.required, input_)] == ["prompt"]


def test_a_video_is_equal_for_equal_seeds_only():
    """Each prediction must have unique bytes, or hashes would prove nothing."""
    one, again, other = (pictures.generate("mp4", seed) for seed in (1, 1, 2))

    assert one == again != other
    assert one.content_type == "video/mp4"


def test_a_submission_fault_is_counted_per_input():
    """Two jobs with different inputs must not use up each other's faults."""
    nothing: Any = SimpleNamespace(files=(), run_after=lambda *_: None)
    predictions = Predictions(nothing, nothing, nothing, ledger.Ledger())
    busy = script.parse_script({"submit": "busy", "submit_times": 1})
    dialect = Dialect("replicate", lambda: "p", lambda *_: {}, lambda *_: Response(429, {}), "output")

    def submit(prompt: str) -> int:
        return predictions.submit(dialect, "m", {"prompt": prompt}, busy, lambda _: Response(201, {})).status

    assert [submit("a"), submit("b"), submit("a"), submit("a"), submit("b")] == [429, 429, 201, 201, 201]


def test_the_default_models_of_moorage_are_known():
    """The README's example names one: it must not answer 404 after `make up`."""
    names = (*settings.REPLICATE_MODELS, *settings.FAL_MODELS)

    assert [name for name in names if models.find_by_name(name) is None] == []
