"""A browser, the service on a real socket, and pages of it that are signed in."""

import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.service import Service, running, settings_in

expect.set_options(timeout=20_000)  # for a machine that does much else
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """It ends with a module: while it lives, its event loop runs in the tests' thread, where others start their own."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=list(_SWITCHES))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a module: each makes what it needs, and looks for that alone."""
    with running(settings_in(tmp_path_factory.mktemp("service") / "data")) as found:
        yield found


SignIn = Callable[..., Page]


@pytest.fixture
def sign_in(browser: Browser, service: Service) -> Iterator[SignIn]:
    """`sign_in("read", "jobs")`: a page in a browser of its own, signed in with a new key. What its console says is an
    error at the end of the test."""
    contexts = []
    said: list[str] = []

    def signed_in(*scopes: str, owner: str = "default", **options: object) -> Page:
        context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)  # type: ignore[arg-type]
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if _is_wrong(message) else None)
        with service.client(*(scopes or ("admin",)), owner=owner) as client:
            link = client.post("/ui/links").json()["path"]
        page.goto(service.url + link)
        return page

    yield signed_in
    for context in contexts:
        context.close()
    assert not said


@pytest.fixture
def page(sign_in: SignIn) -> Page:
    """Signed in with a key that may do everything."""
    return sign_in("admin")


def assert_accessible(page: Page) -> None:
    """Without serious or critical violations as axe sees the page now, in light and in dark."""
    axe = Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page).response["violations"]
        wrong = {one["id"]: [node["html"] for node in one["nodes"]] for one in found if one["impact"] in _SEVERE}
        assert not wrong, scheme
    page.emulate_media(color_scheme="light")


def assert_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    until = time.monotonic() + 20
    while (width := page.evaluate("document.documentElement.scrollWidth")) > 390:  # until the charts have followed
        assert time.monotonic() < until, width
        page.wait_for_timeout(50)


_SEVERE = frozenset({"serious", "critical"})


def _is_wrong(message: ConsoleMessage) -> bool:
    """What a page must never say. An answer of 4xx is no fault of the page."""
    return "Uncaught" in message.text or "Content Security Policy" in message.text
