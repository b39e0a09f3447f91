"""Editing on the web page: choose a picture, paint what should change, and draw."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains

from testing.pictures import gradient
from tests.load_balancer.http.page.browser_page import BROWSER_MARKS, Page
from weir.core import ImageSize

pytestmark = BROWSER_MARKS

WIDE = ImageSize(96, 64)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    gradient(WIDE).save(path)
    return str(path)


def choose(page: Page, picture: str) -> None:
    page.find("picture").send_keys(picture)
    page.wait(lambda: page.find("editing").is_displayed())


def paint(page: Page, *points: tuple[float, float]) -> None:
    """Paints a line between points: (-0.5, -0.5) is the picture's upper left corner, (0.5, 0.5) its lower right."""
    canvas = page.find("paint")
    box = canvas.rect
    steps = [(round(x * box["width"]), round(y * box["height"])) for x, y in points]
    chain = ActionChains(page.browser, duration=50).move_to_element_with_offset(canvas, *steps[0]).click_and_hold()
    for before, after in pairwise(steps):
        chain.move_by_offset(after[0] - before[0], after[1] - before[1])
    chain.release().perform()


def click(page: Page, id: str) -> None:
    """Clicks a button, wherever the page is scrolled to."""
    page.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", page.find(id))
    page.find(id).click()


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_chosen_picture_is_edited_at_its_own_size(page, requests, picture):
    assert "strength" not in page.offered()
    choose(page, picture)
    assert page.filled()["size"] == "auto"
    page.draw(partial_images=0)
    request = requests[-1]
    assert (request.size, request.edit.strength, request.edit.mask) == (WIDE, 0.75, None)
    assert (pixels(request.edit.image) == np.asarray(gradient(WIDE))).all()
    assert page.text("edited") == "0.75"
    frame = page.find("stage").find_element("class name", "picture").rect
    assert frame["width"] / frame["height"] == pytest.approx(1.5, abs=0.01)


def test_only_what_is_painted_is_to_change(page, requests, picture):
    choose(page, picture)
    paint(page, (0.3, -0.4), (0.3, 0.4))
    assert page.filled()["strength"] == "1"
    page.draw(partial_images=0)
    changes = pixels(requests[-1].edit.mask) > 0
    assert changes[32, 96 * 8 // 10]
    assert not changes[:, :60].any()
    assert page.text("edited") == "1.00, masked"
    click(page, "clear")
    page.draw(partial_images=0)
    assert requests[-1].edit.mask is None


def test_the_settings_of_an_edit_include_its_picture_and_its_paint(page, requests, picture):
    choose(page, picture)
    paint(page, (0.0, 0.0), (0.2, 0.0))
    page.draw(partial_images=0, seed=7)
    click(page, "remove")
    assert "strength" not in page.offered()
    assert "auto" not in page.options("size")
    page.draw("a blue star", partial_images=0, seed=8)
    assert requests[-1].edit is None
    page.all("#images button")[1].click()
    click(page, "again")
    page.shows("message", "settings of this image")
    page.draw(partial_images=0)
    assert requests[-1] == requests[0]


def test_an_image_of_the_page_may_be_edited(page, requests):
    page.draw(partial_images=0, size="96x64")
    click(page, "take")
    page.wait(lambda: page.find("editing").is_displayed())
    page.draw(partial_images=0)
    assert requests[-1].edit is not None


def test_a_file_that_is_no_picture_is_told(page, requests, tmp_path):
    (tmp_path / "text.png").write_text("nothing")
    page.find("picture").send_keys(str(tmp_path / "text.png"))
    page.shows("message", "This file is no picture")
    assert "strength" not in page.offered()


def test_an_edit_may_have_another_size_and_several_images(page, requests, picture):
    choose(page, picture)
    page.begin(size="other", width=64, height=64, n=4)
    page.shows("message", "Finished after")
    assert requests[-1].size == (64, 64)


def test_the_command_of_an_edit_sends_a_form(page, requests, picture):
    choose(page, picture)
    page.draw("it's red", partial_images=0)
    page.browser.execute_script("navigator.clipboard.writeText = () => Promise.reject()")
    click(page, "copy")
    page.wait(lambda: page.find("command").is_displayed())
    command = page.find("command").get_property("value")
    assert "/v1/images/edits" in command
    assert "--form-string 'prompt=it'\\''s red'" in command
    assert "-F image=@image.png" in command


def test_a_picture_is_painted_by_touch_on_a_phone(phone, requests, picture):
    choose(phone, picture)
    assert phone.cut() == []
    phone.browser.execute_script("document.getElementById('paint').scrollIntoView({block: 'center'})")
    box = phone.browser.execute_script("return document.getElementById('paint').getBoundingClientRect().toJSON()")
    x, y = box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2
    for kind, points in (("touchStart", [(x, y)]), ("touchMove", [(x, y + 5)]), ("touchEnd", [])):
        touches = [{"x": left, "y": top} for left, top in points]
        phone.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    phone.shows("masked", "What is painted changes")
    phone.draw(partial_images=0)
    assert (pixels(requests[-1].edit.mask) > 0)[32, 77]
