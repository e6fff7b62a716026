"""What Replicate's API tells of models: the list, one with its schema, one version, and collections."""

from simulation.provider import models
from simulation.provider.exchange import Answer, not_found


def answer(kind: str, rest: list[str]) -> Answer:
    """Return the answer under /v1/models or /v1/collections; raises Refused."""
    groups = models.collections()
    match kind, rest:
        case "models", []:
            shown = [models.show(model) for model in models.MODELS.values()]
            return Answer(200, {"previous": None, "next": None, "results": shown})
        case "models", [owner, name] if f"{owner}/{name}" in models.MODELS:
            return Answer(200, models.show(models.MODELS[f"{owner}/{name}"]))
        case "models", [owner, name, "versions", one] if _is_version(f"{owner}/{name}", one):
            return Answer(200, models.show_version(models.MODELS[f"{owner}/{name}"]))
        case "collections", [slug] if slug in groups:
            shown = [models.show(model) for model in groups[slug]]
            return Answer(200, {"name": slug, "slug": slug, "description": "", "models": shown})
        case _:
            raise not_found()


def _is_version(name: str, version: str) -> bool:
    return name in models.MODELS and models.MODELS[name].version == version
