"""The demo's project compared with the jobs that were ordered for its scenes."""

from collections.abc import Sequence
from typing import Any

from simulation.demo.api_client import Ordered
from simulation.demo.submitted_cases import FILM


def differences(project: dict[str, Any], placed: Sequence[Ordered]) -> list[str]:
    """Return where the project's scenes do not show exactly what their jobs published, a line each."""
    found = [] if project["status"] == "assets_generated" else [f"project {FILM} is {project['status']}"]
    shown = {scene["id"]: scene["imageUrls"] for scene in project["document"]["scenes"]}
    for one in placed:
        if one.order.fields.get("project_id") == FILM:
            urls = [variant["url"] for variant in one.shown["variants"]]
            scene = one.order.fields["scene"]
            if shown.get(scene) != urls:
                found.append(f"scene {scene} shows {shown.get(scene)}, its job published {urls}")
    return found
