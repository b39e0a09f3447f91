"""The web page in a headless Chromium, with emulated workers and with the embedded models."""

from __future__ import annotations

import io
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from testing.toy_family import FAMILY, PROFILE
from tests.load_balancer.local_service import LocalService, serving
from weir.config import FamilyConfig, KeyConfig, load_family
from weir.errors import WeirError
from weir.plan import HEAVY, Plan
from weir.profiles import Profile
from workers.emulated import EmulatedEngine
from workers.replica import Worker

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings(
        "ignore:unclosed:ResourceWarning"
    ),  # selenium leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]
PLAN = Plan.split(1, 1, 1, light_batch=4, heavy_batch=4, threshold=0.5)
STEPWISE = {"step_s": [1e-4, 1e-4], "fixed": {"text_s": 0, "decode_s": 0}}
#: Arbitrary times: a gate controls when the heavy variant continues.
DOUBTFUL = Profile.model_validate(
    {**PROFILE, "heavy": {**PROFILE["heavy"], **STEPWISE}, "confidences": [0.25]}  # below the plan's threshold
)
PATIENCE_S = 60


class Gated(EmulatedEngine):
    """The heavy variant waits at each step in :attr:`stops` until its gate is open."""

    def __init__(self) -> None:
        super().__init__(DOUBTFUL)
        self.gate = threading.Event()
        self.stops = {0, 30}

    def step(self, samples: Sequence[Any]) -> list[WeirError | None]:
        if samples[0].job.recipe.variant == HEAVY and samples[0].step in self.stops:
            self.gate.wait(PATIENCE_S)
        return super().step(samples)


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
    workers = [Worker(FAMILY, PLAN.to_dict(), emulate=str(profile)) for _ in PLAN.assignments]
    for worker, engine in zip(workers, engines, strict=True):
        worker.engine = engine
    with serving(workers, PLAN, FamilyConfig.model_validate(FAMILY), profile=DOUBTFUL) as running:
        yield running
        for engine in engines:
            engine.gate.set()


class Page:
    def __init__(self, browser: webdriver.Chrome, service: LocalService):
        self.browser = browser
        self.service = service
        browser.get_log("browser")
        browser.get(service.url)
        self.shows("service", "ready")

    def find(self, id: str) -> Any:
        return self.browser.find_element(By.ID, id)

    def text(self, id: str) -> str:
        return self.find(id).get_property("textContent")

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE_S, 0.05).until(lambda _: condition())

    def shows(self, id: str, text: str) -> None:
        self.wait(lambda: text in self.text(id))

    def type(self, prompt: str) -> None:
        self.find("prompt").clear()
        self.find("prompt").send_keys(prompt)

    def picture(self) -> dict[str, Any]:
        """The image that is on top."""
        return self.browser.execute_script(
            "const i = document.querySelector('.frame img.shown');"
            "return i && {alt: i.alt, width: i.naturalWidth, source: i.src}"
        )

    def kept(self) -> list[str]:
        """Names of the last images, the newest first."""
        return [button.accessible_name for button in self.browser.find_elements(By.CSS_SELECTOR, "#images button")]

    def complaints(self) -> list[str]:
        """Messages of the browser's console, without those of refused requests, which are tested on purpose."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "Failed to load resource" not in message]


@pytest.fixture
def page(browser: webdriver.Chrome, service: LocalService, engines: list[Gated]) -> Iterator[Page]:
    for engine in engines:
        engine.gate.clear()
    page = Page(browser, service)
    yield page
    for engine in engines:
        engine.gate.set()
    page.wait(lambda: service.balancer.admission.in_flight == 0)
    assert page.complaints() == []


def open_gates(engines: list[Gated]) -> None:
    for engine in engines:
        engine.gate.set()


def test_the_light_image_comes_first_and_the_heavy_one_replaces_it(page, engines):
    page.type("a red circle left of a blue star")
    page.find("go").click()
    page.shows("caption", "light image")
    light = page.picture()
    assert light["alt"] == "light image of: a red circle left of a blue star"
    assert page.find("go").get_property("disabled")
    open_gates(engines)
    page.shows("message", "Finished after")
    heavy = page.picture()
    assert heavy["alt"] == "a red circle left of a blue star"
    assert heavy["source"] != light["source"]
    assert page.text("caption") == ""
    reported = {id: page.text(id) for id in ("path", "drawn-by", "confidence", "k", "steps", "plan-version")}
    assert reported == {
        "path": "heavy",
        "drawn-by": "toy-heavy",
        "confidence": "0.250",
        "k": "–",
        "steps": "50",
        "plan-version": "1",
    }
    assert all(page.text(id).endswith(" s") for id in ("first", "finished", "queue", "compute"))
    assert "emulated" in page.text("message")


def test_the_page_says_how_many_tokens_of_the_prompt_were_not_used(page, engines, monkeypatch):
    output = Gated._output
    monkeypatch.setattr(Gated, "_output", lambda self, job: replace(output(self, job), unused_tokens=12))
    open_gates(engines)
    page.type("a long prompt")
    page.find("go").click()
    page.shows("message", "its last 12 tokens were not used")


def test_the_last_images_are_kept_and_shown_again(page, engines):
    open_gates(engines)
    for number in range(3):
        page.type(f"number {number}")
        page.find("go").click()
        page.wait(lambda number=number: page.kept() == [f"number {it} heavy" for it in range(number, -1, -1)])
        page.wait(lambda: not page.find("go").get_property("disabled"))
    page.browser.find_elements(By.CSS_SELECTOR, "#images button")[2].click()
    page.wait(lambda: page.picture()["alt"] == "number 0")


def test_details_of_the_last_image_are_cleared_when_the_next_one_begins(page, engines):
    open_gates(engines)
    page.type("a red circle")
    page.find("go").click()
    page.shows("message", "Finished after")
    assert page.text("path") == "heavy"
    for engine in engines:
        engine.gate.clear()
    page.find("go").click()
    page.shows("caption", "light image")
    assert {page.text(id) for id in ("path", "drawn-by", "confidence", "steps", "drawn-seed")} == {"–"}
    open_gates(engines)
    page.shows("message", "Finished after")


def test_the_page_is_usable_by_keyboard_alone(page, engines):
    body = page.browser.find_element(By.TAG_NAME, "body")
    reached = []
    for _ in range(6):
        webdriver.ActionChains(page.browser).send_keys(Keys.TAB).perform()
        reached.append(page.browser.switch_to.active_element.get_attribute("id"))
    assert reached[:5] == ["prompt", "model", "previews", "seed", "go"]
    page.find("prompt").send_keys("a red circle")
    webdriver.ActionChains(page.browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.shows("caption", "light image")
    body.send_keys(Keys.ESCAPE)
    page.shows("message", "Cancelled.")
    assert page.text("caption") == ""
    page.wait(lambda: page.service.balancer.admission.in_flight == 0)  # though the gate is closed


def test_every_control_has_a_name_and_changes_are_announced(page):
    controls = page.browser.find_elements(By.CSS_SELECTOR, "input, select, textarea, button")
    names = {control.get_attribute("id"): control.accessible_name for control in controls if control.is_displayed()}
    assert {"prompt", "model", "previews", "seed", "go", "stop"} <= set(names)
    assert all(names.values())
    assert page.find("message").get_attribute("aria-live") == "polite"
    page.type(" ")
    page.find("go").click()
    page.shows("message", "Type a prompt first.")
    assert page.find("message").get_attribute("aria-live") == "assertive"


def test_a_prompt_is_text_and_nothing_else(page, engines):
    open_gates(engines)
    prompt = "<img src=x onerror=\"document.title='owned'\"><b id=bold>b</b><script>document.title='owned'</script>"
    page.type(prompt)
    page.find("go").click()
    page.shows("message", "Finished after")
    assert page.browser.title == "Weir"
    assert page.browser.find_elements(By.ID, "bold") == []
    assert page.picture()["alt"] == prompt


def test_errors_are_shown_in_words(page, service):
    page.type("a")
    page.browser.execute_script("document.getElementById('seed').removeAttribute('pattern')")
    page.find("seed").send_keys("99999999999999999999")
    page.find("go").click()
    page.shows("message", "seed is 99999999999999999999; accepted: an integer from 0 to 18446744073709551615")
    page.find("seed").clear()
    service.balancer.admission.in_flight += 64
    page.find("go").click()
    page.shows("message", "Try again in")
    service.balancer.admission.in_flight -= 64
    assert "64 images are in flight" in page.text("message")


def test_the_live_view_shows_demand_roles_threshold_and_shares(page, service, engines):
    open_gates(engines)
    reported = {id: page.text(id) for id in ("light-replicas", "heavy-replicas", "threshold", "hits", "in-flight")}
    assert reported == {
        "light-replicas": "1 of 1",
        "heavy-replicas": "1 of 1",
        "threshold": "0.500",
        "hits": "off",
        "in-flight": "0",
    }
    before = service.balancer.live()["arrivals"]
    page.type("a")
    page.find("go").click()
    page.wait(lambda: page.text("demand") not in ("–", "0.0 images/s"))
    page.shows("deferred", "100 %")
    assert httpx.get(f"{service.url}/v1/live").json()["arrivals"] == before + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_of_the_desktop_and_stays_readable(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    colours = page.browser.execute_script(
        "return ['body', 'section', '#message', '#go'].map((s) => {"
        "const c = getComputedStyle(document.querySelector(s)); return [c.color, c.backgroundColor]})"
    )
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    (ink, ground), (_, card), (soft, _), (on_accent, accent) = [[_luminance(c) for c in pair] for pair in colours]
    assert (ink < ground) == (scheme == "light")
    for text, under in ((ink, ground), (ink, card), (soft, card), (on_accent, accent)):
        assert _contrast(text, under) >= 4.5  # WCAG 2.2, level AA


def test_the_layout_does_not_shift_while_an_image_is_generated(page, engines):
    page.browser.execute_script(
        "window.shifts = 0; new PerformanceObserver((list) => {"
        "  for (const entry of list.getEntries()) window.shifts += entry.value;"
        "}).observe({type: 'layout-shift'})"
    )
    page.type("a red circle")
    page.find("go").click()
    page.shows("caption", "light image")
    open_gates(engines)
    page.shows("message", "Finished after")
    assert page.browser.execute_script("return window.shifts") < 0.01


def test_a_phone_shows_it_in_one_column_without_scrolling_sideways(page):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    wide = page.browser.execute_script("return document.documentElement.scrollWidth")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 390


def test_the_page_asks_for_a_key_when_the_service_needs_one(browser, tmp_path: Path, service):
    key = new_key()
    append_key(tmp_path / "keys.yaml", KeyConfig(name="alice", sha256=digest(key), tenant="acme"))
    profile = tmp_path / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    plan = Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0.5)
    worker = Worker(FAMILY, plan.to_dict(), emulate=str(profile))
    callers = ApiKeys(tmp_path / "keys.yaml")
    with serving([worker], plan, FamilyConfig.model_validate(FAMILY), callers=callers) as guarded:
        browser.get(guarded.url)
        page = Page.__new__(Page)
        page.browser, page.service = browser, guarded
        page.shows("service", "needs a key")
        assert page.find("key").is_displayed()
        page.type("a")
        page.find("go").click()
        page.shows("message", "this service needs a key")
        page.find("key").send_keys(key)
        page.find("go").click()
        page.shows("message", "Finished after")
        page.shows("service", "ready")
        guarded.stop.set()
        page.shows("service", "cannot be reached")


def test_the_embedded_models_generate_an_image_on_the_page(browser):
    family = load_family("deploy/families/weir-tiny.yaml")
    heavy = Plan.split(1, 0, 1, light_batch=1, heavy_batch=1, threshold=1.0)
    with serving([Worker(family.model_dump(), heavy.to_dict())], heavy, family) as service:
        page = Page(browser, service)
        page.type("a red circle left of a blue star")
        page.find("go").click()
        page.shows("message", "Finished after")
        assert page.text("path") == "heavy"
        picture = page.find("frame").screenshot_as_png
    with Image.open(io.BytesIO(picture)) as image:
        assert len(image.convert("RGB").getcolors(2**24) or ()) > 100


def test_only_its_own_script_runs_and_nothing_is_loaded_from_elsewhere(service):
    answer = httpx.get(service.url)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in answer.text
    assert "https://" not in answer.text


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)`` as WCAG defines it."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
