"""Browsers without a screen, where there are some."""

import shutil

import pytest

from tests.support.firefox import started


@pytest.fixture(scope="session")
def browser():
    """Chromium under selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="the page's tests need selenium")
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium with its chromedriver on PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def firefox(tmp_path_factory):
    """Firefox over WebDriver BiDi."""
    pytest.importorskip("websocket", reason="the page's test in Firefox needs websocket-client")
    program = shutil.which("firefox") or shutil.which("firefox-esr")
    if program is None:
        pytest.skip("no firefox on PATH (Debian: firefox-esr)")
    with started(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser
