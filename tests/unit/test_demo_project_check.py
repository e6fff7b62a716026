"""The demo's comparison of a project with its jobs: it has to see what is missing."""

import copy

import pytest

from simulation.demo import project_check, submitted_cases
from simulation.demo.api_client import Ordered

PLACED = [
    Ordered(one, str(number), {"variants": [{"url": f"{number}/{n}"} for n in range(one.publishes)]})
    for number, one in enumerate(submitted_cases.first())
]
SCENES = {
    one.order.fields["scene"]: [variant["url"] for variant in one.shown["variants"]]
    for one in PLACED
    if "scene" in one.order.fields
}
PROJECT = {
    "status": "assets_generated",
    "document": {"scenes": [{"id": scene, "imageUrls": urls} for scene, urls in SCENES.items()]},
}


def test_every_scene_has_a_job_and_a_project_that_is_right_shows_no_difference():
    """What agrees must not be reported, or nobody reads the report."""
    assert set(SCENES) == set(submitted_cases.SCENES)

    assert project_check.differences(PROJECT, PLACED) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda project: project.update(status="open"),
        lambda project: project["document"]["scenes"][0]["imageUrls"].pop(),
        lambda project: project["document"]["scenes"][1]["imageUrls"].append("another"),
        lambda project: project["document"]["scenes"].pop(),
    ],
    ids=["unfinished", "lost", "doubled", "without a scene"],
)
def test_a_damage_of_the_project_is_told(damage):
    """A demo that cannot fail shows nothing."""
    project = copy.deepcopy(PROJECT)

    damage(project)

    assert len(project_check.differences(project, PLACED)) == 1
