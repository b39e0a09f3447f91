"""The web page as a person uses it, in Chromium."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.load_balancer.http.page.gated_service import PATIENCE_S
from tests.load_balancer.local_service import LocalService

BROWSER_MARKS = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings(
        "ignore:unclosed:ResourceWarning"
    ),  # selenium leaves its sockets to the garbage collector
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


class Page:
    """The page of a service in a browser, newly loaded.

    Args:
        state: the state of the service to wait for.
    """

    def __init__(self, browser: webdriver.Chrome, service: LocalService, state: str = "ready"):
        self.browser = browser
        self.service = service
        browser.get_log("browser")
        browser.get(service.url)
        self.shows("service", state)
        if state == "ready":
            self.wait(lambda: self.options("size"))

    def find(self, id: str) -> WebElement:
        return self.browser.find_element(By.ID, id)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, id: str) -> str:
        return self.find(id).get_property("textContent")

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.browser, PATIENCE_S, 0.05).until(lambda _: condition())

    def shows(self, id: str, text: str) -> None:
        self.wait(lambda: text in self.text(id))

    # ---- the form

    def field(self, name: str) -> WebElement:
        return self.browser.find_element(By.NAME, name)

    def options(self, name: str) -> dict[str, str]:
        """Values of a choice, and their words."""
        return {it.get_property("value"): it.get_property("text") for it in Select(self.field(name)).options}

    def offered(self) -> set[str]:
        """Names of the fields that the form offers."""
        self.browser.execute_script("document.getElementById('more').open = true")
        return {it.get_attribute("name") for it in self.all("#form [name]") if it.is_displayed()}

    def fill(self, **values: object) -> None:
        self.browser.execute_script("document.getElementById('more').open = true")
        for name, value in values.items():
            field = self.field(name)
            if field.tag_name == "select":
                next(it for it in Select(field).options if it.get_property("value") == str(value)).click()
            else:
                field.clear()
                field.send_keys(str(value))

    def filled(self) -> dict[str, str]:
        return {it.get_attribute("name"): it.get_property("value") for it in self.all("#form [name]:enabled")}

    def begin(self, prompt: str = "a red circle", **values: object) -> None:
        self.fill(prompt=prompt, **values)
        self.find("go").click()

    def draw(self, prompt: str = "a red circle", **values: object) -> None:
        self.begin(prompt, **values)
        self.shows("message", "Finished after")

    # ---- the images

    def pictures(self) -> list[dict[str, Any] | None]:
        """The picture that is on top in each frame."""
        return self.browser.execute_script(
            "return [...document.querySelectorAll('#stage .picture')].map((frame) => {"
            "const i = [...frame.querySelectorAll('img')].at(-1);"
            "return i ? {alt: i.alt, width: i.naturalWidth, source: i.src} : null})"
        )

    def picture(self) -> dict[str, Any] | None:
        [picture] = self.pictures()
        return picture

    def frames(self) -> list[str]:
        """What the frames say instead of a picture, and below it."""
        return [frame.get_property("textContent") for frame in self.all("#stage figure")]

    def kept(self) -> list[str]:
        """Names of the last images, the newest first."""
        return [button.accessible_name for button in self.all("#images button")]

    def facts(self, *ids: str) -> list[str]:
        return [self.text(id) for id in ids]

    def cut(self) -> list[str]:
        """What is wider than its place: the page, a text or a choice."""
        return self.browser.execute_script("""
            const texts = document.querySelectorAll("body, h1, h2, dt, dd, label, button, figcaption, p, span");
            const choices = [...document.querySelectorAll("select")].filter((it) => {
                const given = it.offsetWidth;
                it.style.width = "auto";
                const own = it.offsetWidth;
                it.style.width = "";
                return own > given;
            });
            const cut = [...texts].filter((it) => it.clientWidth && it.scrollWidth > it.clientWidth + 1);
            const wide = document.documentElement.scrollWidth > innerWidth ? ["the page"] : [];
            return [...wide, ...[...cut, ...choices].map((it) => it.id || it.name || it.textContent)];
        """)

    def complaints(self) -> list[str]:
        """Messages of the browser's console, without those of refused requests, which are tested on purpose."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "Failed to load resource" not in message]


def press(page: Page, key: str) -> None:
    webdriver.ActionChains(page.browser).send_keys(key).perform()
