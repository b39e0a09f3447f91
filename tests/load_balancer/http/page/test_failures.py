"""Cancelled and failed requests on the web page: no unfinished picture looks like a result."""

from __future__ import annotations

import re
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.load_balancer.http.page.browser_page import BROWSER_MARKS, Page, press
from tests.load_balancer.http.page.gated_service import DOUBTFUL, SIZED, Gated, close_gates, open_gates
from tests.load_balancer.local_service import serving
from weir.config import FamilyConfig
from weir.plan import Plan
from workers.replica import Worker

pytestmark = BROWSER_MARKS


def test_escape_cancels_and_leaves_no_unfinished_picture(page, engines):
    close_gates(engines)
    page.begin(n=2)
    page.wait(lambda: all(page.pictures()))
    press(page, Keys.ESCAPE)
    page.shows("message", "Cancelled.")
    assert page.frames() == ["cancelled, no image"] * 2
    assert page.pictures() == [None, None]
    assert page.kept() == []
    assert not any(page.find(id).is_enabled() for id in ("download", "copy", "again", "stop"))
    page.wait(lambda: page.service.balancer.admission.in_flight == 0)  # though the gate is closed
    open_gates(engines)
    page.draw(n=1)


def test_an_error_after_a_preview_leaves_no_picture_that_looks_like_a_result(page, engines):
    close_gates(engines)
    for engine in engines:
        engine.stops = {30}
    page.begin(model="toy/heavy")
    page.wait(page.picture)
    assert page.picture()["alt"] == "preview of the heavy image, unfinished: a red circle"
    assert re.fullmatch(r"preview after \d+ steps", page.frames()[0])
    for engine in engines:
        engine.broken = True
    open_gates(engines)
    page.shows("message", "the denoiser is broken")
    assert page.find("message").get_attribute("aria-live") == "assertive"
    assert page.picture() is None
    assert page.frames() == ["failed, no image"]
    assert page.kept() == []


def test_one_variant_of_a_comparison_remains_when_the_other_one_fails(page, engines):
    for engine in engines:
        engine.broken = True
    page.begin(model="beside")
    page.shows("message", "the denoiser is broken")
    light, heavy = page.frames()
    assert light.startswith("light · ")
    assert heavy == "failed, no image"
    assert page.pictures()[1] is None
    assert "1 of 2 images finished" in page.text("message")
    assert page.kept() == ["a red circle light"]


def test_a_connection_that_ends_leaves_no_unfinished_picture(browser, tmp_path: Path):
    profile = tmp_path / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    heavy = Plan.split(1, 0, 1, light_batch=1, heavy_batch=1, threshold=1.0)
    worker = Worker(SIZED, heavy.to_dict(), emulate=str(profile))
    worker.engine = engine = Gated()
    engine.stops = {30}
    with serving([worker], heavy, FamilyConfig.model_validate(SIZED)) as service:
        page = Page(browser, service)
        page.begin()
        page.wait(page.picture)
        service.stop.set()
        page.wait(lambda: page.frames() == ["failed, no image"])
        engine.gate.set()
    assert page.find("message").get_attribute("data-kind") == "error"
    assert page.kept() == []


def test_errors_are_shown_in_words(page, service):
    page.browser.execute_script("document.querySelector('[name=seed]').removeAttribute('pattern')")
    page.begin(seed=99999999999999999999)
    page.shows("message", "seed is 99999999999999999999; accepted: an integer from 0 to 18446744073709551615")
    page.field("seed").clear()
    service.balancer.admission.in_flight += 64
    page.find("go").click()
    page.shows("message", ". Try again in")
    service.balancer.admission.in_flight -= 64
    assert "64 images are in flight" in page.text("message")
