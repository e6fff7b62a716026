"""The demo's check of a project against its jobs must detect every difference."""

import copy

import pytest

from simulation.cases import CaseRun
from simulation.demo import cases
from simulation.demo.report import check_project

RUNS = [
    CaseRun(case, view={"variants": [{"url": f"{number}/{n}"} for n in range(case.files)]})
    for number, case in enumerate(cases.job_requests())
]
SCENES = {
    run.case.scene: [variant["url"] for variant in run.view["variants"]] for run in RUNS if run.case.scene is not None
}
PROJECT = {
    "status": "assets_generated",
    "document": {"scenes": [{"id": scene, "imageUrls": urls} for scene, urls in SCENES.items()]},
}


def test_every_scene_has_a_job_and_a_correct_project_has_no_difference():
    """A check with false alarms is ignored."""
    assert set(SCENES) == set(cases.SCENES)

    assert check_project(PROJECT, RUNS) == []


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
def test_a_damaged_project_is_reported(damage):
    """A demo that cannot fail shows nothing."""
    project = copy.deepcopy(PROJECT)

    damage(project)

    assert len(check_project(project, RUNS)) == 1
