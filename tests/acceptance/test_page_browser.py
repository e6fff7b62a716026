"""The page in a real browser: what people see, hear and reach with keys, while work goes on behind it."""

import io
import uuid

import pytest
import requests
from PIL import Image

from tests.acceptance import browser as drive
from tests.acceptance.world import until

WAITING = {"status": "processing"}


@pytest.fixture
def owner():
    return f"page-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def page(chromium, world, owner):
    token = drive.owner_token(world.local.url, world.token, owner)
    with drive.page_of(chromium, world.local.url, token) as opened:
        yield opened


def told(page):
    """Return what each card says of its state; a kept one shows it."""
    return page.locator(".card").evaluate_all(
        "cards => cards.map(card => card.querySelector('.state')?.innerText ?? 'Kept')"
    )


def test_a_walk_from_the_first_picture_to_its_deletion(chromium, world, owner):
    """It arrives by itself, is looked at whole, by keys, marked, filtered for, read about, and deleted."""
    token = drive.owner_token(world.local.url, world.token, owner, "delete")
    with drive.page_of(chromium, world.local.url, token) as page:
        page.get_by_text("Nothing here yet.").wait_for()
        assert "token" not in page.url
        portrait = {"outputs": 3, "width_px": 400, "height_px": 1200, "formats": ["jpeg"]}
        world.await_end(world.ask(portrait, owner=owner, prompt="a boat at dawn", style="oil"))
        page.locator(".card.kept").wait_for(timeout=60_000)
        page.locator(".thumbs img").nth(1).wait_for()
        assert (told(page), page.locator("#count").inner_text()) == (["Kept"], "1 render")
        assert page.locator(".day h2").all_inner_texts() == ["Today"]

        link = page.locator("a.picture")
        page.locator("#renders").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.matches('a.picture')")
        # The ring, above the picture, which the page may still lay out.
        until(lambda: pixel(page, link.bounding_box()) == (0x1F, 0x5F, 0x8B), "the ring is painted", seconds=20)
        page.keyboard.press("Enter")
        for size in (drive.DESK, drive.PHONE):
            page.set_viewport_size(size)
            until(lambda: page.evaluate("document.querySelector('#stage img').naturalWidth"), "the file is loaded")
            rooms = [page.locator(f"#lightbox {name}").bounding_box() for name in (".bar", "#stage img", "nav")]
            ends = [(room["y"], room["y"] + room["height"]) for room in rooms]
            assert 0 <= ends[0][0] < ends[0][1] <= ends[1][0] < ends[1][1] <= ends[2][0] < ends[2][1] <= size["height"]
            assert abs(rooms[1]["height"] / rooms[1]["width"] - 3) < 0.05
            assert drive.violations(page) == []
        page.keyboard.press("End")
        assert "JPEG, 400 × 1200" in page.locator("#caption").inner_text()  # noqa: RUF001
        page.keyboard.press("Escape")
        until(lambda: page.evaluate("document.activeElement.matches('.thumbs a')"), "the focus is back")

        page.set_viewport_size(drive.DESK)
        page.get_by_role("button", name="Mark as favourite").click()
        page.get_by_role("button", name="Remove from favourites").wait_for()
        page.get_by_label("State").focus()
        page.get_by_label("State").select_option("failed")
        page.get_by_text("No renders match this filter.").wait_for()
        assert page.locator("#count").inner_text() == "0 renders"
        assert page.evaluate("document.activeElement.name") == "state"
        page.get_by_label("State").select_option("")
        page.locator(".about > summary").click()
        assert page.locator(".about dd").all_inner_texts() == ["a boat at dawn", "standin/pictures", "replicate", "1"]
        assert page.locator(".files").get_by_role("link", name="Download").count() == 3
        page.locator(".confirm > summary").click()
        assert drive.violations(page) == []
        page.get_by_role("button", name="Delete for good").click()
        page.get_by_role("alert").filter(has_text="Deleted.").wait_for()
        page.get_by_text("Nothing here yet.").wait_for()


def pixel(page, room):
    """Return the colour one pixel inside the left edge of a box."""
    clip = {"x": room["x"] + 1, "y": room["y"] + room["height"] / 2, "width": 1, "height": 1}
    with Image.open(io.BytesIO(page.screenshot(clip=clip))) as image:
        return image.convert("RGB").getpixel((0, 0))


@pytest.mark.prove
def test_states_are_told_as_they_are_and_survive_a_reload(world, page, owner):
    """What is not a picture says why, in words."""
    world.ask(WAITING, owner=owner, prompt="waits")
    partial = world.ask({"outputs": 2, "faults": {"1": "404_always"}}, owner=owner, prompt="half")
    failed = world.ask({"faults": {"0": "corrupt"}}, owner=owner, prompt="broken")
    world.await_end(partial, failed)

    page.reload()

    assert sorted(told(page)) == ["Failed", "Partial: 1 of 2", "Waiting"]
    assert page.locator(".card.partial .detail").inner_text() == "A file could not be fetched from the provider"
    page.get_by_label("State").select_option("failed")
    page.wait_for_url("**/?state=failed")
    assert told(page) == ["Failed"]
    assert page.locator("#count").inner_text() == "1 render"
    page.go_back()
    page.wait_for_url(lambda url: "state" not in url)
    page.locator(".card.partial").wait_for()
    assert drive.violations(page) == []


@pytest.mark.prove
def test_the_lightbox_goes_by_keys_and_gives_the_focus_back(world, page, owner):
    """Pictures are looked at one after another, without a mouse too."""
    asked = world.ask({"outputs": 3}, owner=owner, prompt="three boats")
    world.await_end(asked)
    page.locator(".card.kept").wait_for(timeout=60_000)

    page.locator(".card a.picture").focus()
    page.keyboard.press("Enter")
    box = page.get_by_role("dialog")
    box.wait_for()
    first = box.locator("img").get_attribute("src")
    assert "1 of 3" in page.locator("#caption").inner_text()
    assert drive.violations(page) == []
    page.keyboard.press("ArrowRight")
    assert "2 of 3" in page.locator("#caption").inner_text()
    assert box.locator("img").get_attribute("src") != first
    page.keyboard.press("End")
    assert "3 of 3" in page.locator("#caption").inner_text()
    page.keyboard.press("ArrowRight")
    assert box.locator("img").get_attribute("src") == first == box.locator("#original").get_attribute("href")
    page.keyboard.press("Escape")

    assert box.is_hidden()
    assert page.evaluate("document.activeElement.matches('.card a.picture')")


@pytest.mark.prove
def test_what_happened_between_the_page_and_its_stream_is_shown(chromium, world, owner):
    """A picture that was kept in that moment must not be told as waiting for ever."""
    waits = world.ask({"status": "processing"}, owner=owner, prompt="was there")
    token = drive.owner_token(world.local.url, world.token, owner)
    held = []

    with drive.page_of(chromium, world.local.url, token) as page:
        page.route("**/v1/events", lambda route: held.append(route))
        page.reload()
        until(lambda: page.locator(".card.waiting").count() == 1 and held, "the page is made and asks for its stream")
        asked = world.ask({}, owner=owner, prompt="came between")
        world.await_end(asked)
        stop(world, waits)
        for route in held:
            route.continue_()

        page.locator(".card.kept").wait_for(timeout=60_000)
        page.locator(".card.cancelled").wait_for(timeout=60_000)
        assert told(page) == ["Kept", "Cancelled"]


def stop(world, asked):
    answer = requests.post(f"{world.local.url}/v1/jobs/{asked.job_id}/cancel", headers=world.token, timeout=30)
    assert answer.status_code == 200, answer.text


@pytest.mark.prove
def test_a_card_that_arrives_stands_in_its_place_and_fits_the_filter(chromium, world, owner):
    """The newest come first, and what was filtered out stays out."""
    old, new, other = (world.ask(WAITING, owner=owner, prompt=name) for name in ("old", "new", "other"))
    token = drive.owner_token(world.local.url, world.token, owner)

    with drive.page_of(chromium, world.local.url, token) as page:
        page.goto(f"{world.local.url}/?state=cancelled")
        page.locator("body[data-live=on]").wait_for()
        stop(world, new)
        page.get_by_role("heading", name="new").wait_for(timeout=60_000)
        ended = world.ask({}, owner=owner, prompt="kept")
        world.await_end(ended)
        stop(world, old)
        page.get_by_role("heading", name="old").wait_for(timeout=60_000)

        assert page.locator(".card h3").all_inner_texts() == ["new", "old"]
    assert world.job(other)["state"] == "open"


@pytest.mark.prove
def test_a_stream_that_is_refused_is_asked_for_again(chromium, world, owner):
    """A proxy's 503 ends an EventSource for good: the page would stand still until somebody reloads it."""
    token = drive.owner_token(world.local.url, world.token, owner)
    context = chromium.new_context()
    page = context.new_page()
    refused = []
    page.route("**/v1/events", lambda route: refuse_once(route, refused))
    page.goto(f"{world.local.url}/#token={token}")

    page.get_by_text("Live updates are unavailable").wait_for(timeout=60_000)
    asked = world.ask({}, owner=owner, prompt="meanwhile")
    world.await_end(asked)

    page.locator(".card.kept").wait_for(timeout=60_000)
    assert len(refused) == 1
    context.close()


def refuse_once(route, refused):
    if refused:
        route.continue_()
    else:
        refused.append(route.request.url)
        route.fulfill(status=503, body="away")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.prove
def test_axe_finds_nothing_at_any_size(chromium, world, owner, scheme):
    """Contrast, names and order hold in both colour schemes, on a desk and on a phone."""
    world.await_end(world.ask({"outputs": 2}, owner=owner, prompt="a boat", style="oil"))
    world.ask(WAITING, owner=owner, prompt="waits")
    token = drive.owner_token(world.local.url, world.token, owner)

    with drive.page_of(chromium, world.local.url, token, color_scheme=scheme) as page:
        assert drive.violations(page) == []
        page.set_viewport_size(drive.PHONE)
        assert drive.violations(page) == []
        page.locator(".fold > summary").click()
        assert drive.violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        send = page.get_by_label("Project").bounding_box()
        assert send["x"] + send["width"] <= drive.PHONE["width"]


@pytest.mark.prove
def test_a_button_does_what_it_says_and_that_is_said_once(chromium, world, owner):
    """A form of the page was refused as another site's; and what is long past must not be told at every reload."""
    world.ask(WAITING, owner=owner, prompt="unwanted", style="oil")
    token = drive.owner_token(world.local.url, world.token, owner)

    with drive.page_of(chromium, world.local.url, token) as page:
        page.goto(f"{world.local.url}/?style=oil")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("alert").filter(has_text="Cancelled.").wait_for()
        assert drive.violations(page) == []
        page.wait_for_url("**/?style=oil")
        page.reload()

        page.locator("body[data-live=on]").wait_for()
        assert told(page) == ["Cancelled"]
        assert page.get_by_role("alert").count() == 0


@pytest.mark.prove
def test_a_link_that_ran_out_says_so(chromium, world):
    """An old link must not look like an empty collection."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{world.local.url}/#token=moo_nonsense")

    page.get_by_text("This link has expired").wait_for()
    assert "token" not in page.url
    assert drive.violations(page) == []
    context.close()


@pytest.mark.prove
def test_it_is_whole_without_scripts(chromium, world, owner):
    """Links lead to files, filters and pages; only what is live is missing."""
    world.await_end(world.ask({}, owner=owner, prompt="plain"))
    session = drive.session_of(chromium, world.local.url, world.token, owner)

    with drive.opened(chromium, world.local.url, session, java_script_enabled=False) as page:
        assert told(page) == ["Kept"]
        page.get_by_role("button", name="Show").click()
        assert told(page) == ["Kept"]
        page.locator("a.picture").click()
        assert page.evaluate("document.images.length") == 1


def test_a_link_of_another_owner_asks_before_it_replaces_the_session(chromium, world, owner):
    """Whoever follows a stranger's link would generate into the stranger's account."""
    url, other = world.local.url, f"other-{owner}"
    links = [f"{url}/#token={drive.owner_token(world.local.url, world.token, name)}" for name in (owner, other)]
    context = chromium.new_context(viewport=drive.DESK)
    page = context.new_page()

    def follow(link, answer=None):
        page.goto("about:blank")
        page.goto(link)
        if answer is not None:
            dialog = page.get_by_role("dialog", name=f"Show the renders of {other}?")
            assert owner in dialog.inner_text()
            dialog.get_by_role("button", name=answer).click()
            dialog.wait_for(state="hidden")
        page.locator("#grid").wait_for(state="attached")
        assert "token" not in page.url

    def session():
        return context.request.get(f"{url}/v1/session").json()["owner"]  # not the page's: it may be navigating

    follow(links[0])
    follow(links[1], "Stay here")
    assert session() == owner
    follow(links[1], "Switch")
    until(lambda: session() == other, "the session is replaced")
    follow(links[1])
    context.close()
