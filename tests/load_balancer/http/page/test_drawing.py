"""The web page draws images: one, several, light beside heavy; with keys and with the embedded models."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import httpx
from PIL import Image
from selenium.webdriver.common.by import By

from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from testing.toy_family import FAMILY
from tests.load_balancer.http.page.browser_page import BROWSER_MARKS, Page
from tests.load_balancer.http.page.gated_service import DOUBTFUL, Gated, close_gates, open_gates
from tests.load_balancer.local_service import serving
from weir.config import FamilyConfig, KeyConfig, load_family
from weir.plan import Plan
from workers.replica import Worker

pytestmark = BROWSER_MARKS


def test_the_light_image_comes_first_and_the_heavy_one_replaces_it(page, engines):
    close_gates(engines)
    page.begin("a red circle left of a blue star")
    page.wait(lambda: page.frames() == ["light image · a better one is being generated"])
    light = page.picture()
    assert light["alt"] == "light image, unfinished: a red circle left of a blue star"
    assert page.find("go").get_attribute("aria-disabled") == "true"
    open_gates(engines)
    page.shows("message", "Finished after")
    heavy = page.picture()
    assert heavy["alt"] == "a red circle left of a blue star"
    assert heavy["source"] != light["source"]
    assert page.frames()[0].startswith("heavy · 50 steps · ")
    reported = page.facts("shown-prompt", "path", "drawn-by", "confidence", "k", "size", "steps", "plan-version")
    assert reported == ["a red circle left of a blue star", "heavy", "toy-heavy", "0.250", "–", "64 × 64", "50", "1"]
    assert all(it.endswith("\u00a0s") for it in page.facts("first", "finished", "queue", "compute"))
    assert "emulated" in page.text("message")


def test_the_page_says_how_many_tokens_of_the_prompts_were_not_used(page, monkeypatch):
    output = Gated._output
    unused = {"unused_tokens": 12, "unused_negative_tokens": 3}
    monkeypatch.setattr(Gated, "_output", lambda self, job: replace(output(self, job), **unused))
    page.draw("a long prompt", negative_prompt="a long one, too")
    assert "The prompt is too long: its last 12 tokens were not used." in page.text("message")
    assert "The negative prompt is too long: its last 3 tokens were not used." in page.text("message")


def test_several_images_stand_side_by_side_and_each_can_be_looked_at(page):
    page.draw("three", n=3, seed=40)
    assert [picture["alt"] for picture in page.pictures()] == ["three"] * 3
    assert page.kept() == ["three heavy"] * 3
    for frame, seed in zip(page.all("#stage .picture"), ("40", "41", "42"), strict=True):
        frame.click()
        assert page.text("drawn-seed") == seed
        assert [it.get_attribute("aria-pressed") for it in page.all("#stage .picture")].count("true") == 1
        assert frame.get_attribute("aria-pressed") == "true"


def test_light_beside_heavy_shows_both_variants_of_one_seed(page, engines, requests):
    assert list(page.options("model").values()) == ["cascade", "light", "heavy", "light beside heavy"]
    close_gates(engines)
    page.begin("a red circle", model="beside", num_inference_steps=31)
    page.shows("message", "1 of 2 images finished.")
    light, heavy = page.frames()
    assert light.startswith("light · 2 steps · ")
    assert heavy == "waiting…"
    open_gates(engines)
    page.shows("message", "Finished after")
    asked = {request.variant: request for request in requests}
    assert set(asked) == {"light", "heavy"}
    assert asked["light"].seed == asked["heavy"].seed is not None
    assert (asked["light"].steps, asked["heavy"].steps) == (None, 31)
    assert page.frames()[1].startswith("heavy · 31 steps · ")
    tops = [frame.rect["y"] for frame in page.all("#stage figure")]
    assert tops[0] == tops[1]
    for frame, path in zip(page.all("#stage .picture"), ("light", "heavy"), strict=True):
        frame.click()
        assert page.facts("path", "drawn-seed") == [path, str(asked["light"].seed)]


def test_details_of_the_last_image_are_cleared_when_the_next_one_begins(page, engines):
    page.draw()
    assert page.text("path") == "heavy"
    close_gates(engines)
    page.find("go").click()
    page.wait(lambda: page.frames() == ["light image · a better one is being generated"])
    assert set(page.facts("path", "drawn-by", "confidence", "steps", "drawn-seed")) == {"–"}
    assert not any(page.find(id).is_enabled() for id in ("download", "copy", "again"))


def test_a_prompt_is_text_and_nothing_else(page):
    prompt = "<img src=x onerror=\"document.title='owned'\"><b id=bold>b</b><script>document.title='owned'</script>"
    page.draw(prompt)
    assert page.browser.title == "Weir"
    assert page.browser.find_elements(By.ID, "bold") == []
    assert page.picture()["alt"] == prompt


def test_the_page_asks_for_a_key_when_the_service_needs_one(browser, tmp_path: Path, service):
    key = new_key()
    append_key(tmp_path / "keys.yaml", KeyConfig(name="alice", sha256=digest(key), tenant="acme"))
    profile = tmp_path / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    plan = Plan.split(1, 1, 0, light_batch=4, heavy_batch=4, threshold=0.5)
    worker = Worker(FAMILY, plan.to_dict(), emulate=str(profile))
    callers = ApiKeys(tmp_path / "keys.yaml")
    with serving([worker], plan, FamilyConfig.model_validate(FAMILY), callers=callers) as guarded:
        page = Page(browser, guarded, "needs a key")
        assert page.find("key").is_displayed()
        page.begin()
        page.shows("message", "this service needs a key; enter it in the field Key.")
        page.find("key").send_keys(key)
        page.find("go").click()
        page.shows("message", "Finished after")
        page.shows("service", "ready")
        command = browser.execute_script("return curl(chosen)")
        assert '-H "Authorization: Bearer $WEIR_API_KEY"' in command
        assert key not in command
        guarded.stop.set()
        page.shows("service", "cannot be reached")


def test_the_embedded_models_generate_an_image_on_the_page(browser):
    family = load_family("deploy/families/weir-tiny.yaml")
    heavy = Plan.split(1, 0, 1, light_batch=1, heavy_batch=1, threshold=1.0)
    with serving([Worker(family.model_dump(), heavy.to_dict())], heavy, family) as service:
        page = Page(browser, service)
        page.draw("a red circle left of a blue star")
        assert page.text("path") == "heavy"
        picture = page.find("stage").find_element(By.CLASS_NAME, "picture").screenshot_as_png
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
