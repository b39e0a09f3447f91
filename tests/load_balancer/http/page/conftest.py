"""Fixtures: Chromium, a service whose heavy variant can be held up, and its page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver

from load_balancer.runner.generation_request import GenerationRequest
from tests.load_balancer.http.page.browser_page import Page
from tests.load_balancer.http.page.gated_service import DOUBTFUL, PLAN, SIZED, Gated, open_gates, recorded
from tests.load_balancer.local_service import LocalService, serving
from weir.config import FamilyConfig
from workers.replica import Worker

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(found.values()), "the page is tested in Chromium; `make system-packages` installs it"
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"] or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def engines() -> list[Gated]:
    return [Gated(), Gated()]


@pytest.fixture(scope="module")
def service(engines: list[Gated], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    profile = tmp_path_factory.mktemp("page") / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    workers = [Worker(SIZED, PLAN.to_dict(), emulate=str(profile)) for _ in PLAN.assignments]
    for worker, engine in zip(workers, engines, strict=True):
        worker.engine = engine
    with serving(workers, PLAN, FamilyConfig.model_validate(SIZED), profile=DOUBTFUL) as running:
        yield running
        for engine in engines:
            engine.gate.set()


@pytest.fixture
def page(browser: webdriver.Chrome, service: LocalService, engines: list[Gated]) -> Iterator[Page]:
    """The page of a service whose heavy variant is free to run; :func:`close_gates` holds it up."""
    open_gates(engines)
    page = Page(browser, service)
    yield page
    for engine in engines:
        engine.broken, engine.stops = False, {0, 30}
    open_gates(engines)
    page.wait(lambda: service.balancer.admission.in_flight == 0)
    assert page.complaints() == []


@pytest.fixture
def requests(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that the service gets from now on."""
    return recorded(service, monkeypatch)


@pytest.fixture
def phone(page: Page) -> Iterator[Page]:
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    yield page
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
