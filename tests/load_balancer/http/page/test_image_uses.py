"""What can be done with an image on the web page: look again, download, repeat."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx

from tests.load_balancer.http.page.browser_page import BROWSER_MARKS

pytestmark = BROWSER_MARKS


def test_the_last_images_are_kept_in_memory_and_shown_again(page):
    for number in range(3):
        page.draw(f"number {number}")
        assert page.kept() == [f"number {it} heavy" for it in range(number, -1, -1)]
    page.all("#images button")[2].click()
    assert page.picture()["alt"] == page.text("shown-prompt") == "number 0"
    assert [it.get_attribute("aria-current") for it in page.all("#images button")] == ["false", "false", "true"]
    page.browser.refresh()
    assert page.kept() == []
    assert (
        page.browser.execute_script("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    )


def test_the_settings_of_an_old_image_are_taken_up_again(page, requests):
    settings = {"num_inference_steps": 31, "guidance_scale": 4.5, "negative_prompt": "a star", "size": "96x64", "n": 2}
    page.draw("an old one", model="toy/heavy", **settings)
    old, seed = requests[-1], page.text("drawn-seed")
    page.draw("a new one", model="toy/light", size="32x32", n=1)
    page.all("#images button")[1].click()
    page.find("again").click()
    chosen = page.text("drawn-seed")
    assert page.filled() == {
        **{name: str(value) for name, value in settings.items()},
        **{"prompt": "an old one", "model": "toy/heavy", "partial_images": "2", "n": "1", "seed": chosen},
        "sampler": "",
    }
    page.find("go").click()
    page.wait(lambda: len(requests) == 3)
    page.shows("message", "Finished after")
    assert replace(requests[-1], n=2, seed=None) == old
    assert int(chosen) - int(seed) in (-1, 0, 1)


def test_an_image_is_downloaded_under_a_name_of_its_prompt_and_seed(page, tmp_path: Path):
    page.draw("A red circle, left of “étoile”!", seed=2**64 - 1)
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    page.find("download").click()
    file = tmp_path / f"a-red-circle-left-of-étoile-{2**64 - 1}.png"
    page.wait(file.exists)
    assert file.read_bytes() == base64.b64decode(page.picture()["source"].partition(",")[2])


def test_the_curl_command_of_an_image_generates_it_again(page, requests):
    permissions = {"origin": page.service.url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", permissions)
    page.draw('it\'s a "red" circle & $HOME', guidance_scale=4.5, size="96x64", n=2, seed=2**64 - 2)
    page.all("#stage .picture")[1].click()
    page.find("copy").click()
    page.shows("message", "The curl command is in the clipboard.")
    command = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    [image] = json.loads(ran.stdout)["data"]
    assert image["weir"]["seed"] == 2**64 - 1
    assert httpx.get(image["url"]).content == base64.b64decode(page.pictures()[1]["source"].partition(",")[2])
    shown, again = requests
    assert replace(again, n=2, seed=2**64 - 2, stream=True, partial_images=2, response_format="b64_json") == shown


def test_without_a_clipboard_the_curl_command_is_there_to_be_copied(page):
    page.draw()
    page.browser.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.find("copy").click()
    page.wait(page.find("command").is_displayed)
    assert page.find("command").get_property("value").startswith(f"curl {page.service.url}/v1/images/generations")
    assert page.browser.switch_to.active_element == page.find("command")
