"""The settings of the web page's form: what it offers, and what it sends."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.by import By

from tests.load_balancer.http.page.browser_page import BROWSER_MARKS, Page
from tests.load_balancer.http.page.gated_service import DOUBTFUL, PLAN, SIZED, EmptyCache, recorded
from tests.load_balancer.local_service import serving
from weir.config import FamilyConfig
from workers.replica import Worker

pytestmark = BROWSER_MARKS


def test_every_size_of_the_family_can_be_chosen_and_the_frame_takes_its_shape(page, requests):
    assert page.options("size") == {"64x64": "64 × 64", "32x32": "32 × 32", "96x64": "96 × 64", "other": "other…"}
    page.draw(size="96x64")
    assert requests[-1].size == (96, 64)
    frame = page.find("stage").find_element(By.CLASS_NAME, "picture").rect
    assert frame["width"] / frame["height"] == pytest.approx(1.5, abs=0.01)
    assert page.text("size") == "96 × 64"


def test_a_size_that_is_not_listed_has_a_width_and_a_height_within_the_limits(page, requests):
    assert {"width", "height"}.isdisjoint(page.offered())
    page.fill(size="other")
    assert {"width", "height"} <= page.offered()
    assert [page.field(name).get_property("value") for name in ("width", "height")] == ["64", "64"]
    page.draw(size="other", width=40, height=80)
    assert requests[-1].size == (40, 80)
    frame = page.find("stage").find_element(By.CLASS_NAME, "picture").rect
    assert frame["width"] / frame["height"] == pytest.approx(0.5, abs=0.01)
    assert page.text("size") == "40 × 80"
    page.fill(size="64x64")
    assert {"width", "height"}.isdisjoint(page.offered())
    page.find("again").click()
    assert page.filled()["size"] == "other"
    assert (page.filled()["width"], page.filled()["height"]) == ("40", "80")


@pytest.mark.parametrize(
    ("width", "height", "validity"),
    [
        (24, 64, "rangeUnderflow"),  # the smallest multiple of 8 within the limits is 32
        (136, 64, "rangeOverflow"),
        (36, 64, "stepMismatch"),
        (128, 80, "customError"),  # each side is allowed, and together they have too many pixels
        ("", 64, "valueMissing"),
    ],
)
def test_a_size_beyond_the_limits_is_not_sent(page, requests, width, height, validity):
    page.begin(size="other", width=width, height=height)
    assert page.browser.execute_script(f"return document.querySelector('[name=width]').validity.{validity}")
    assert requests == []


def test_a_sampler_of_the_family_can_be_chosen_for_its_last_variant(page, requests):
    own = page.options("sampler")[""]
    assert page.options("sampler") == {"": own, "dpmpp-2m-karras": "dpmpp-2m-karras"}
    assert own.endswith("(default)")
    page.draw(sampler="dpmpp-2m-karras")
    assert requests[-1].sampler == "dpmpp-2m-karras"
    page.fill(sampler="")
    page.find("again").click()
    assert page.filled()["sampler"] == "dpmpp-2m-karras"
    page.fill(model="toy/light")
    assert "sampler" not in page.offered()


def test_steps_guidance_and_negative_prompt_are_those_of_the_form(page, requests):
    page.draw(num_inference_steps=31, guidance_scale=4.5, negative_prompt="a blue star", partial_images=0, seed=7)
    asked = requests[-1]
    assert (asked.steps, asked.guidance, asked.negative_prompt) == (31, 4.5, "a blue star")
    assert (asked.partial_images, asked.seed, asked.variant) == (0, 7, None)
    assert page.facts("steps", "drawn-seed") == ["31", "7"]


def test_fields_left_empty_keep_the_models_own_values_which_the_form_shows(page, requests):
    shown = {name: page.field(name).get_attribute("placeholder") for name in ("num_inference_steps", "guidance_scale")}
    assert shown == {"num_inference_steps": "50", "guidance_scale": "2"}
    page.draw()
    asked = requests[-1]
    assert (asked.steps, asked.guidance, asked.negative_prompt, asked.seed, asked.cache) == (None, None, "", None, None)


def test_only_what_suits_the_chosen_model_is_offered_and_sent(page, requests):
    general = {"prompt", "model", "size", "n", "seed", "partial_images"}
    assert page.offered() == general | {"negative_prompt", "num_inference_steps", "guidance_scale", "sampler"}
    page.fill(num_inference_steps=31, guidance_scale=4.5, negative_prompt="a star", model="toy/light")
    assert page.offered() == general  # the light variant takes no steps, runs without guidance, and has no cache
    page.draw()
    asked = requests[-1]
    assert (asked.variant, asked.steps, asked.guidance, asked.negative_prompt) == ("light", None, None, "")
    page.fill(model="toy/heavy")
    assert "guidance_scale" in page.offered()


def test_the_cache_is_offered_where_there_is_one_and_a_comparison_begins_at_noise(browser, tmp_path, monkeypatch):
    profile = tmp_path / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    workers = [Worker(SIZED, PLAN.to_dict(), emulate=str(profile)) for _ in PLAN.assignments]
    with serving(workers, PLAN, FamilyConfig.model_validate(SIZED), cache=EmptyCache()) as service:
        page, requests = Page(browser, service), recorded(service, monkeypatch)
        assert page.options("cache") == {
            "": "read-write (default)",
            "off": "off",
            "read": "read",
            "read-write": "read-write",
        }
        assert "cache" in page.offered()
        assert page.cut() == []
        page.draw(cache="read")
        assert requests[-1].cache == "read"
        page.draw(cache="", model="beside")
        assert page.options("cache")[""] == "off (default)"
        assert {request.variant: request.cache for request in requests[-2:]} == {"light": None, "heavy": "off"}


def test_adapters_are_offered_by_their_scales_and_the_image_names_those_that_it_has(browser, tmp_path, monkeypatch):
    profile = tmp_path / "profile.json"
    profile.write_text(DOUBTFUL.model_dump_json())
    adapters = {name: {"file": f"/weights/{name}.safetensors"} for name in ("noir", "sky")}
    family = {**SIZED, "adapters": adapters}
    workers = [Worker(family, PLAN.to_dict(), emulate=str(profile)) for _ in PLAN.assignments]
    with serving(workers, PLAN, FamilyConfig.model_validate(family)) as service:
        page, requests = Page(browser, service), recorded(service, monkeypatch)
        assert {"lora:noir", "lora:sky"} <= page.offered()
        assert page.cut() == []
        page.draw(**{"lora:noir": 0.7, "lora:sky": -1})
        assert [(it.name, it.scale) for it in requests[-1].adapters] == [("noir", 0.7), ("sky", -1.0)]
        assert page.text("drawn-adapters") == "noir*0.7 sky*-1"
        page.draw(**{"lora:noir": "", "lora:sky": ""})
        assert requests[-1].adapters == ()
        assert page.text("drawn-adapters") == "–"
        page.all("#images button")[1].click()
        page.find("again").click()
        assert (page.filled()["lora:noir"], page.filled()["lora:sky"]) == ("0.7", "-1")
        page.begin(**{"lora:noir": 5})
        script = "return document.getElementsByName('lora:noir')[0].validity.rangeOverflow"
        assert page.browser.execute_script(script)


def test_the_form_knows_the_limits_of_the_service(page):
    page.wait(lambda: page.field("n").get_attribute("max"))
    limits = {name: page.field(name).get_attribute("max") for name in ("n", "num_inference_steps", "guidance_scale")}
    assert limits == {"n": "4", "num_inference_steps": "100", "guidance_scale": "30"}
    assert page.field("prompt").get_attribute("maxlength") == "2000"
    page.begin(n=5)
    assert page.browser.execute_script("return document.querySelector('[name=n]').validity.rangeOverflow")
    assert page.frames()[0].strip().startswith("The image appears here")  # nothing was sent
