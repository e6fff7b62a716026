"""The filters of the page in a real browser: folded where room is scarce, open where it is not, without scripts too."""

import uuid

import pytest

from tests.acceptance import browser as drive


@pytest.fixture
def owner():
    return f"filters-{uuid.uuid4().hex[:8]}"


@pytest.mark.prove
@pytest.mark.parametrize("has_scripts", [True, False])
def test_on_a_phone_the_filters_are_folded_until_asked_for(chromium, world, owner, has_scripts):
    """They took half a screen above the first picture; and a folded filter must not be forgotten."""
    world.await_end(world.ask({}, owner=owner, prompt="plain", style="oil"))
    session = drive.session_of(chromium, world.local.url, world.token, owner)

    with drive.opened(
        chromium, world.local.url, session, viewport=drive.PHONE, java_script_enabled=has_scripts
    ) as page:
        assert page.locator(".card").bounding_box()["y"] < 170
        assert page.get_by_label("Style").is_hidden()
        reach(page, ".fold > summary")
        page.keyboard.press("Enter")
        page.get_by_label("Style").select_option("oil")
        if not has_scripts:
            page.get_by_role("button", name="Show").click()
        page.wait_for_url("**style=oil*")

        assert page.get_by_text("Filter: oil").is_visible()
        assert page.get_by_label("Style").is_visible() is has_scripts  # another one may be chosen
        assert page.locator(".card.kept").count() == 1


@pytest.mark.prove
@pytest.mark.parametrize("has_scripts", [True, False])
def test_on_a_desk_the_filters_are_never_folded(chromium, world, owner, has_scripts):
    """Where there is room, nobody should have to open them; keys and screen readers come to them too."""
    session = drive.session_of(chromium, world.local.url, world.token, owner)

    with drive.opened(chromium, world.local.url, session, java_script_enabled=has_scripts) as page:
        assert page.locator(".fold > summary").is_hidden()
        for name in ("Kind", "State", "Style", "Project"):
            assert page.get_by_role("combobox", name=name).is_visible()
        reach(page, "select[name=kind]")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.name") == "state"
        assert {"Kind", "State", "Style", "Project"} <= heard(page)


def reach(page, selector):
    """Press Tab until something has the focus."""
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    raise AssertionError(f"no key leads to {selector}")


def heard(page):
    """Return the names of what a screen reader can choose from, as the browser tells it."""
    asked = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
    return {
        node["name"]["value"]
        for node in asked["nodes"]
        if not node["ignored"] and node.get("role", {}).get("value") == "combobox"
    }
