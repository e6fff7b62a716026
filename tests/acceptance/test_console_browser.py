"""The console in a real browser: what is live, what keys do, and what people without a mouse or scripts reach."""

import pytest

from tests.acceptance import browser as drive
from tests.acceptance.test_console_walks import DISCARD_LETTERS, add_letters
from tests.acceptance.world import until

LINKS = (
    "Overview", "Dead letters", "Jobs", "Predictions", "Deliveries", "Outputs", "Notifications", "Workers", "Sweeps",
    "Pauses", "Recover", "Runbook",
)  # fmt: skip


def visit(page, link):
    page.get_by_role("navigation", name="Console").get_by_role("link", name=link, exact=True).click()
    until(lambda: page.locator("[aria-current=page]").inner_text() == link, f"{link} is shown")


@pytest.fixture
def letters(world):
    """Have three dead letters until the end of the test."""
    yield add_letters(
        world, 3, "nobody", b"{", category="VALIDATION_FAILED", error="MalformedPayload", reason="not JSON",
        retryable=False,
    )  # fmt: skip
    world.rows(f"WITH closed AS ({DISCARD_LETTERS} RETURNING 1) SELECT 1")


@pytest.mark.prove
def test_lists_live_and_leave_what_was_chosen(chromium, world, letters):
    """A refresh must not take away a selection or what somebody types; no key acts on a row."""
    with drive.console_of(chromium, world.local.url, world.local.secrets["api_token"]) as page:
        visit(page, "Dead letters")
        box = page.get_by_label("Select", exact=False).nth(1)
        box.check()
        page.locator("#live").evaluate("live => live.dataset.before = 'yes'")
        page.locator("body[data-live=on]").wait_for()
        asked = world.ask({})
        until(lambda: page.locator("#live[data-before]").count() == 0, "the list was fetched again")
        assert page.get_by_label("Select", exact=False).nth(1).is_checked()

        for key in ("r", "d", "a", "Delete", "Enter"):
            page.keyboard.press(key)
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type(asked.external_id)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Timeline").wait_for()
        page.get_by_text(asked.external_id).first.wait_for()

        visit(page, "Jobs")
        world.await_end(asked)
        page.locator("tbody tr").first.get_by_text("succeeded").wait_for()
    assert world.one("SELECT count(*) AS n FROM dead_letters WHERE state = 'open' AND reason = 'not JSON'")["n"] == 3


@pytest.mark.prove
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [drive.DESK, drive.PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_on_any_page(chromium, world, letters, scheme, size):
    """Contrast, names, landmarks and order; and nothing is wider than a phone."""
    url, token = world.local.url, world.local.secrets["api_token"]
    asked = world.ask({"faults": {"0": "corrupt"}})
    world.await_end(asked)
    with drive.console_of(chromium, url, token, color_scheme=scheme, viewport=size) as page:
        for link in LINKS:
            visit(page, link)
            assert drive.violations(page) == [], link
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), link
        page.goto(f"{url}/ops/show/{asked.job_id}")
        assert drive.violations(page) == []
        page.get_by_role("button", name="Acknowledge 1 dead letter").click()
        assert drive.violations(page) == []
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
        assert drive.violations(page) == []


@pytest.mark.prove
def test_it_is_whole_without_scripts(chromium, world, letters):
    """Only what is live is missing."""
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{world.local.url}/ops/dead-letters?category=VALIDATION_FAILED")
    page.get_by_label("Token").fill(world.local.secrets["api_token"])
    page.get_by_role("button", name="Sign in").click()

    page.get_by_role("button", name="Acknowledge all").click()
    page.get_by_label("Note").fill("known")
    page.get_by_role("button", name="Acknowledge 3").click()

    page.locator("p.result").filter(has_text="3 acknowledged").wait_for()
    context.close()
