"""What the stand-in's models make of an input, how orders are failed and counted; without a process."""

from typing import Any

import pytest

from simulation.provider import faults, ledger, models, pictures, schemas
from simulation.provider.exchange import Answer
from simulation.provider.submissions import Order, Submissions

PICTURES, FAILING, VIDEO = (models.MODELS[f"standin/{name}"] for name in ("pictures", "failing", "text-to-video"))
FILES = ("a.png", "b.mp4")


def planned(model: models.Model | None, asked: dict[str, Any], files: tuple[str, ...] = ()) -> faults.Plan:
    return faults.plan(asked.get("standin"), files, models.nature(model, asked, files))


@pytest.mark.parametrize(
    ("asked", "expected"),
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
def test_an_input_says_how_many_and_how_large(asked, expected):
    """Each provider has its own words for it; a script overrules them all."""
    plan = planned(PICTURES, asked)

    assert (plan.outputs, plan.seed, plan.width_px) == expected


def test_a_folder_serves_each_kind_of_model_its_own_files():
    """A video among the pictures would be a fault that nobody ordered."""
    assert planned(PICTURES, {}, FILES).formats == ("a.png",)
    assert planned(VIDEO, {}, FILES).formats == ("b.mp4",)
    assert planned(None, {}, FILES).formats == FILES
    assert planned(VIDEO, {}, ("a.png",)).formats == pictures.VIDEOS


def test_names_are_found_with_version_and_path_behind_them():
    """fal's applications have paths, Replicate's models versions."""
    assert models.named("standin/failing/fast") is models.named("standin/failing:abc") is FAILING
    assert models.of_version(FAILING.version) is models.of_version("standin/failing") is FAILING
    assert models.named("acme/pier") is models.of_version("5c7d") is None


def test_every_model_takes_the_smallest_input_its_schema_asks_for():
    """A model nobody can order from would only show as a refused order."""
    smallest = {"prompt": "x", "image": "https://example.com/a.png"}

    for model in models.MODELS.values():
        asked = {name: smallest[name] for name in model.required}
        assert schemas.problems(model.fields, model.required, asked) == []


def test_null_is_no_value_only_where_the_schema_says_so():
    """Applications send null for what they leave open."""
    asked = {"prompt": None, "seed": None}

    assert [name for name, _ in schemas.problems(PICTURES.fields, PICTURES.required, asked)] == ["prompt"]


def test_a_video_is_the_same_for_the_same_seed_only():
    """Each run's bytes must be its own, or hashes would prove nothing."""
    one, again, other = (pictures.made("mp4", seed) for seed in (1, 1, 2))

    assert one == again != other
    assert one.content_type == "video/mp4"


def test_a_fault_ends_after_its_orders_for_this_input_alone():
    """Two jobs with different inputs must not use up each other's faults."""
    submissions = Submissions(ledger.Ledger())
    plan = faults.plan({"submit": "busy", "submit_times": 1})

    def take(prompt: str) -> int:
        return submissions.take(
            Order("replicate", "m", {"prompt": prompt}),
            plan,
            lambda *_: Answer(429, {}),
            lambda _: ("p", Answer(201, {})),
        ).status

    assert [take("a"), take("b"), take("a"), take("a"), take("b")] == [429, 429, 201, 201, 201]


def test_the_summary_counts_what_was_made_by_provider_and_key():
    """One key, two predictions: the proof that something was ordered twice."""
    made = [
        {"kind": "prediction", "provider": "fal", "key": "a"},
        {"kind": "prediction", "provider": "fal", "key": "a"},
        {"kind": "prediction", "provider": "openai", "key": None},
    ]

    summary = ledger.summarise([*made, {"kind": "submission", "fault": "lost"}])

    assert summary["made_by_key"] == {"a": 2}
    assert summary["made_by_provider"] == {"fal": 2, "openai": 1}
    assert summary["submissions"] == {"lost": 1}
