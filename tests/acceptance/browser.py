"""A real browser for the tests of the page: the system's Chromium, driven by playwright."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import requests

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
# Without these it asks its maker's hosts at every start.
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser; the test is skipped where there is none, or nothing to drive it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None or subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("no Chromium is installed")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("no playwright is installed: make browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*_QUIET, "--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def owner_token(url: str, bearer: dict[str, str], owner: str, *scopes: str) -> str:
    """Return a token for one owner, as an application asks for it."""
    answer = requests.post(
        f"{url}/v1/owner-tokens", json={"owner": owner, "scopes": ["jobs", *scopes]}, headers=bearer, timeout=30
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


@contextlib.contextmanager
def page_of(browser: Any, url: str, token: str, **options: Any) -> Iterator[Any]:
    """Open the page as an owner does, with the application's link; what the browser complains of fails the test."""
    context = browser.new_context(**{"viewport": DESK, **options})
    context.set_default_timeout(90_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{url}/#token={token}")
    page.locator("#grid").wait_for(state="attached")
    yield page
    context.close()
    assert not complaints, complaints


@contextlib.contextmanager
def console_of(browser: Any, url: str, token: str, **options: Any) -> Iterator[Any]:
    """Sign in to the console as an operator does; what the browser complains of fails the test."""
    context = browser.new_context(**{"viewport": DESK, **options})
    context.set_default_timeout(90_000)
    page = context.new_page()
    complaints: list[str] = []
    # A server that is stopped is a reason to look at the console.
    page.on("console", lambda x: complaints.append(x.text) if x.type == "error" and "net::ERR_" not in x.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{url}/ops")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation", name="Console").wait_for()
    yield page
    context.close()
    assert not complaints, complaints


def session_of(browser: Any, url: str, bearer: dict[str, str], owner: str) -> Any:
    """Return the cookies of an owner's browser, for a page that runs no script to exchange its link."""
    context = browser.new_context()
    token = owner_token(url, bearer, owner)
    assert context.request.post(f"{url}/v1/session", headers={"Authorization": f"Bearer {token}"}).ok
    cookies = context.storage_state()
    context.close()
    return cookies


@contextlib.contextmanager
def opened(browser: Any, url: str, session: Any, **options: Any) -> Iterator[Any]:
    """Open the page with the cookies of `session_of`."""
    context = browser.new_context(**{"viewport": DESK, "storage_state": session, **options})
    context.set_default_timeout(90_000)
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def violations(page: Any) -> list[str]:
    """Return what axe-core finds wrong with a page for people who cannot see or use a mouse."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]
