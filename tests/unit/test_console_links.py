"""Where the verdict of the console leads: to an action that its provider has."""

import re
from pathlib import Path

import pytest

import providers
from cli.commands.simulate import simulate
from moorage.problems import Problem
from moorage.settings import Settings
from web.console import overview

PROVIDERS = providers.load(
    Settings(database_url="postgresql://h/d", celery_broker_url="redis://h/0", replicate_api_token="r8_token")
)

OVERVIEW = Path(overview.__file__).parents[1] / "page/templates/console/overview.html"


@pytest.mark.parametrize("code", ["webhooks_refused", "webhooks_missing"])
@pytest.mark.parametrize(
    ("provider", "link"),
    [
        ("replicate", ("Recover", "/ops/recover?provider=replicate")),
        ("fal", ("Predictions", "/ops/predictions?provider=fal&hours=1")),
        ("removed", ("Predictions", "/ops/predictions?provider=removed&hours=1")),
    ],
)
def test_only_a_provider_with_a_list_is_recovered(code: str, provider: str, link: tuple[str, str]) -> None:
    """The form of /ops/recover opens on another provider otherwise."""
    assert overview._choose_link(Problem(code, "critical", "text", "remedy", "anchor", provider), PROVIDERS) == link


@pytest.mark.parametrize(
    ("target", "link"),
    [
        ("fal", ("Pause", "/ops/pauses?target=fal")),
        ("direct", ("Waiting files", "/ops/outputs?state=waiting")),
        ("", ("Notifications", "/ops/notifications?state=waiting")),
    ],
)
def test_what_is_no_provider_is_not_paused(target: str, link: tuple[str, str]) -> None:
    """URLs of POST /v1/keep and notifications fail in lists of their own."""
    problem = Problem("attempts_fail", "warning", "text", "remedy", "anchor", target)

    assert overview._choose_link(problem, PROVIDERS) == link


def test_the_overview_prints_a_test_webhook_that_can_be_sent() -> None:
    """Not of the first provider by name, which is fal."""
    names = re.findall(r"moorage simulate (\S+) --send", OVERVIEW.read_text(encoding="utf-8"))
    (accepted,) = (param.type.to_info_dict()["choices"] for param in simulate.params if param.name == "provider")

    assert names
    assert set(names) <= set(accepted)
