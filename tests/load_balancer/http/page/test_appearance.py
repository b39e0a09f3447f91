"""The web page on every screen: keyboard, phone, colours, the live view."""

from __future__ import annotations

import re

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.load_balancer.http.page.browser_page import BROWSER_MARKS, press
from tests.load_balancer.http.page.gated_service import close_gates, open_gates

pytestmark = BROWSER_MARKS


def test_the_page_is_usable_by_keyboard_alone(page, engines):
    close_gates(engines)
    reached = []
    for _ in range(8):
        press(page, Keys.TAB)
        focused = page.browser.switch_to.active_element
        reached.append(focused.get_attribute("name") or focused.get_attribute("id") or focused.text)
    assert reached == ["prompt", "model", "size", "n", "seed", "picture", "More settings", "go"]
    page.find("prompt").send_keys("a red circle")
    webdriver.ActionChains(page.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.wait(page.picture)
    assert page.browser.switch_to.active_element == page.find("prompt")
    press(page, Keys.ESCAPE)
    page.shows("message", "Cancelled.")


def test_every_control_has_a_name_and_changes_are_announced(page):
    page.draw(n=2)
    assert page.offered() < {it.get_attribute("name") for it in page.all("input, select, textarea")}
    controls = [it for it in page.all("input, select, textarea, button, summary") if it.is_displayed()]
    assert all(control.accessible_name for control in controls)
    assert page.find("service").get_attribute("role") == page.find("message").get_attribute("role") == "status"
    assert page.find("message").get_attribute("aria-live") == "polite"
    page.begin(" ")
    page.shows("message", "Type a prompt first.")
    assert page.find("message").get_attribute("aria-live") == "assertive"


def test_the_live_view_shows_demand_roles_threshold_and_shares(page, service):
    reported = page.facts("light-replicas", "heavy-replicas", "threshold", "hits", "in-flight")
    assert reported == ["1 of 1", "1 of 1", "0.500", "off", "0"]
    before = service.balancer.live()["arrivals"]
    page.draw("a")
    page.wait(lambda: page.text("demand") not in ("–", "0.0 images/s"))
    page.shows("deferred", "100 %")
    assert httpx.get(f"{service.url}/v1/live").json()["arrivals"] == before + 1


def test_the_demand_line_has_a_scale(page, service):
    scales = page.browser.execute_script("return [0, 0.4, 1, 1.1, 2.5, 7, 10, 12, 480].map(scaleOf)")
    assert scales == [1, 1, 1, 2, 5, 10, 10, 20, 500]
    assert page.text("demand-top") == "1"
    service.balancer.observations.arrived(300, 1.0)
    page.wait(lambda: page.text("demand-top") != "1")
    label = page.find("demand-line").get_attribute("aria-label")
    [top, most] = map(float, re.findall(r"from 0 to (\d+) .* at most ([\d.]+)", label)[0])
    assert most <= top <= 2.5 * most
    heights = [
        float(y)
        for y in page.browser.execute_script(
            "return document.querySelector('#demand-line polyline').getAttribute('points').split(' ')"
            ".map((point) => point.split(',')[1])"
        )
    ]
    assert min(heights) == pytest.approx(30 - 30 * most / top, abs=0.5)  # 0 is at the top of the picture


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_of_the_desktop_and_stays_readable(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.begin(" ")
    page.wait(lambda: page.find("message").get_attribute("data-kind") == "error")
    colours = page.browser.execute_script(
        "return ['body', 'section', '#service', '#message', '#go', '#prompt'].map((s) => {"
        "const c = getComputedStyle(document.querySelector(s)); return [c.color, c.backgroundColor]})"
    )
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    pairs = [[_luminance(colour) for colour in pair] for pair in colours]
    (ink, ground), (_, card), (soft, _), (error, _), on_button, on_field = pairs
    assert (ink < ground) == (scheme == "light")
    for text, under in ((ink, ground), (ink, card), (soft, ground), (soft, card), (error, card), on_button, on_field):
        assert _contrast(text, under) >= 4.5  # WCAG 2.2, level AA


def test_the_layout_does_not_shift_while_an_image_is_generated(page, engines):
    page.fill(prompt="a red circle")
    page.browser.execute_script(
        "window.shifts = 0; new PerformanceObserver((list) => {"
        "  for (const entry of list.getEntries()) window.shifts += entry.value;"
        "}).observe({type: 'layout-shift'})"
    )
    close_gates(engines)
    page.find("go").click()
    page.wait(page.picture)
    open_gates(engines)
    page.shows("message", "Finished after")
    assert page.browser.execute_script("return window.shifts") < 0.01


def test_a_phone_shows_everything_in_one_column_and_cuts_nothing(phone):
    assert phone.cut() == []
    wide = {"n": 1, "size": "other", "width": 128, "height": 72, "model": ""}
    for settings in ({"n": 4, "size": "96x64", "model": ""}, wide, {"n": 1, "size": "64x64", "model": "beside"}):
        phone.draw("a-word-that-is-as-long-as-" * 10, seed=2**64 - 9, **settings)
        assert phone.cut() == []


def test_a_phone_shows_the_state_of_the_service_wherever_it_is_scrolled_to(phone, service, monkeypatch):
    pending = ["light: 0 of 12 replicas ready", "heavy: 0 of 4 replicas ready"]
    report = service.balancer.readiness() | {"ready": False, "pending": pending}
    monkeypatch.setattr(service.balancer, "readiness", lambda: report)
    phone.shows("service", "waiting for light: 0 of 12 replicas ready, heavy: 0 of 4 replicas ready")
    assert phone.cut() == []
    phone.browser.execute_script("window.scrollTo(0, document.documentElement.scrollHeight)")
    state = phone.browser.execute_script("return document.getElementById('service').getBoundingClientRect().toJSON()")
    assert (state["top"] >= 0, state["bottom"] <= 844, state["left"] >= 0, state["right"] <= 390) == (True,) * 4


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)`` as WCAG defines it."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
