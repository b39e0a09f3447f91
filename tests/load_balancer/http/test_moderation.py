"""Prompts and images that are blocked: answered as OpenAI does, before any work where that is possible."""

from __future__ import annotations

import asyncio
import sys
import types
from pathlib import Path

import pytest

from load_balancer.admission import prompt_filter
from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from load_balancer.http.openapi import EDITS, GENERATIONS
from testing.pictures import gradient, png
from weir.config import FamilyConfig, KeyConfig
from weir.core import ImageSize
from weir.errors import Blocked, ConfigError

BODY = {"prompt": "a weapon"}


class Words:
    """Blocks a word; at the level low only where it is doubled."""

    def blocked(self, prompt: str, level: str) -> bool:
        return ("weapon weapon" if level == "low" else "weapon") in prompt


class Remote:
    async def blocked(self, prompt: str, level: str) -> bool:
        await asyncio.sleep(0)
        return "weapon" in prompt


class Broken:
    def blocked(self, prompt: str, level: str) -> bool:
        raise RuntimeError("no model")


class Hanging:
    async def blocked(self, prompt: str, level: str) -> bool:
        await asyncio.sleep(60)
        return False


@pytest.fixture(autouse=True)
def own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ``own_filters`` of an operator."""
    module = types.ModuleType("own_filters")
    for it in (Words, Remote, Broken, Hanging):
        setattr(module, it.__name__, it)
    monkeypatch.setitem(sys.modules, "own_filters", module)


def filtered(name: str, moderation: str = "auto") -> dict[str, object]:
    return {"prompt_filter": f"own_filters:{name}", "callers": ApiKeys(moderation=moderation)}


@pytest.mark.parametrize("name", ["Words", "Remote"])
async def test_a_blocked_prompt_is_answered_as_openai_does_and_nothing_is_generated(serving, pool, name):
    async with serving(**filtered(name)) as client:
        answer = await client.post(GENERATIONS, json=BODY)
        assert (await client.post(GENERATIONS, json={"prompt": "a circle"})).is_success
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "moderation_blocked",
        "image_generation_user_error",
        "prompt",
    )
    assert "a weapon" not in [call["prompt"] for _, _, call in pool.calls]


async def test_the_prompt_of_an_edit_is_filtered_as_any_other(serving, pool):
    picture = {"image": ("a.png", png(gradient(ImageSize(64, 64))))}
    async with serving(**filtered("Words")) as client:
        answer = await client.post(EDITS, data=BODY, files=picture)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    assert not pool.calls


async def test_a_filter_that_fails_lets_nothing_through(serving, pool, caplog):
    async with serving(**filtered("Broken")) as client:
        answer = await client.post(GENERATIONS, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "Retry-After" in answer.headers
    assert not pool.calls
    assert "no model" in caplog.text
    assert "no model" not in answer.text


async def test_a_filter_that_hangs_lets_nothing_through(serving, pool, monkeypatch):
    monkeypatch.setattr(prompt_filter, "FILTER_S", 0.01)
    async with serving(**filtered("Hanging")) as client:
        assert (await client.post(GENERATIONS, json=BODY)).status_code == 503
    assert not pool.calls


async def test_moderation_may_be_lower_only_where_the_key_allows_it(serving, tmp_path: Path):
    strict, loose = new_key(), new_key()
    append_key(tmp_path / "keys.yaml", KeyConfig(name="s", sha256=digest(strict), tenant="acme"))
    append_key(tmp_path / "keys.yaml", KeyConfig(name="l", sha256=digest(loose), tenant="acme", moderation="low"))
    callers = ApiKeys(tmp_path / "keys.yaml", moderation="auto")
    async with serving(callers=callers, prompt_filter="own_filters:Words") as client:

        async def status(key: str, **fields: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return (await client.post(GENERATIONS, json={**BODY, **fields}, headers=headers)).status_code

        assert await status(strict) == 400
        assert await status(strict, moderation="low", prompt="a circle") == 400
        assert await status(loose) == 200
        assert await status(loose, moderation="auto") == 400
        assert await status(loose, prompt="weapon weapon") == 400


async def test_without_a_filter_and_a_checker_both_levels_are_accepted(serving):
    async with serving() as client:
        for level in ("auto", "low"):
            assert (await client.post(GENERATIONS, json={**BODY, "moderation": level})).is_success


async def test_a_blocked_image_is_a_400_and_no_violation(serving, pool):
    blocked = Blocked.code, "the safety checker blocked the image; ask for something else"
    pool.fail = lambda replica, variant: blocked
    async with serving() as client:
        answer = await client.post(GENERATIONS, json=BODY)
        counts = (await client.get("/v1/live")).json()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "moderation_blocked")
    assert counts["failed"] == 0


async def test_unfinished_images_are_not_shown_where_finished_ones_are_checked(serving, pool, family: FamilyConfig):
    checked = family.model_copy(update={"safety_checker": "own_filters:Words"})
    body = {**BODY, "stream": True, "partial_images": 2, "model": "toy/heavy"}
    for moderation, previews in (("auto", 0), ("off", 2)):
        pool.calls.clear()
        async with serving(family=checked, callers=ApiKeys(moderation=moderation)) as client:
            assert (await client.post(GENERATIONS, json=body)).is_success
        assert {call["moderation"] for _, _, call in pool.calls} == {moderation}
        assert max(call["previews"] for _, _, call in pool.calls) == previews


def test_a_filter_that_cannot_be_made_is_an_error_at_start() -> None:
    with pytest.raises(ConfigError, match="prompt_filter: own_filters:Nobody"):
        prompt_filter.FilteredPrompts("own_filters:Nobody")
