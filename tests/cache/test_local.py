"""The cache of one process, kept in a file between runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache.local import LocalCache
from tests.cache.conftest import request, state
from weir.config import CacheConfig, FamilyConfig
from weir.core import ImageRequest
from weir.errors import ConfigError
from weir.states import State

FAMILY = FamilyConfig.model_validate(
    {
        "name": "tiny",
        "pipeline": "nowhere",
        "size": 64,
        "light": {"name": "light", "scheduler": "ddim", "steps": 1, "guidance": 0},
        "heavy": {"name": "heavy", "scheduler": "ddim", "steps": 50, "guidance": 3},
    }
)
CONFIG = CacheConfig(mode="read-write", encoder="words")


@dataclass
class Run:
    first: int
    states: tuple[State, ...]
    seen: bytes | None = None


def asked(name: str, prompt: str = "a red circle") -> ImageRequest:
    return replace(request(name), prompt=prompt, capture=None)


def generate(cache: LocalCache, name: str) -> None:
    """A run from noise."""
    wanted = asked(name)
    found = cache.lookup(wanted)
    assert found.resume is None
    assert found.capture
    captured = replace(wanted, capture=found.partition)
    cache.finished(captured, Run(0, tuple(state(k) for k in (5, 10, 15, 20, 25))))


def test_a_later_process_resumes_from_an_earlier_ones_states(tmp_path: Path) -> None:
    file = tmp_path / "cache.weir"
    first = LocalCache(CONFIG, FAMILY, file)
    generate(first, "first")
    first.save()
    later = LocalCache(CONFIG, FAMILY, file)
    found = later.lookup(asked("second"))
    assert found.resume is not None
    resumed = later.state(found.resume.key)
    assert resumed is not None
    assert (found.resume.step, resumed.step) == (25, 25)
    assert not found.capture, "the same prompt again leaves nothing new"


def test_a_state_that_does_not_fit_is_replaced_by_the_next_run(tmp_path: Path) -> None:
    cache = LocalCache(CONFIG, FAMILY, tmp_path / "cache.weir")
    generate(cache, "first")
    assert cache.lookup(asked("second")).resume is not None
    cache.finished(asked("second"), Run(0, ()), sought=25, refused=True)
    generate(cache, "third")


def test_another_prompt_and_a_missing_run_insert_nothing(tmp_path: Path) -> None:
    cache = LocalCache(CONFIG, FAMILY, tmp_path / "cache.weir")
    generate(cache, "first")
    other = "two blue stars above a yellow ring"
    assert cache.lookup(asked("second", other)).resume is None
    cache.finished(asked("second", other), None)
    assert cache.lookup(asked("third", other)).resume is None


def test_states_that_another_secret_sealed_are_not_used(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs.weir", tmp_path / "mine.weir"
    other = LocalCache(CONFIG, FAMILY, theirs)
    generate(other, "first")
    other.save()
    mine.write_bytes(theirs.read_bytes())
    assert LocalCache(CONFIG, FAMILY, mine).lookup(asked("second")).resume is None
    assert (tmp_path / "mine.weir.secret").stat().st_mode & 0o777 == 0o600


def test_a_selector_by_confidence_needs_a_family_with_a_discriminator(tmp_path: Path) -> None:
    judged = CONFIG.model_copy(update={"selector": "deploy/profiles/weir-tiny-judged.json"})
    with pytest.raises(ConfigError, match="family tiny has no discriminator"):
        LocalCache(judged, FAMILY, tmp_path / "cache.weir", lambda family: pytest.fail(family.name))


def thresholds(path: Path, **about: str) -> CacheConfig:
    path.write_text(json.dumps({"selector": {"steps": 50, "levels": [[0.9, 25]]}, **about}))
    return CONFIG.model_copy(update={"selector": str(path)})


def test_a_profile_of_another_encoder_is_refused(tmp_path: Path) -> None:
    config = thresholds(tmp_path / "profile.json", encoder="clip-1")
    with pytest.raises(ConfigError, match=r"profile\.json .* clip-1, and the cache's is words-1024; .*cache profile"):
        LocalCache(config, FAMILY, tmp_path / "cache.weir")


@pytest.mark.parametrize("about", [{"encoder": "words-1024"}, {}], ids=["of this encoder", "of an unnamed encoder"])
def test_a_profile_of_the_same_or_an_unnamed_encoder_is_accepted(tmp_path: Path, about: dict[str, str]) -> None:
    LocalCache(thresholds(tmp_path / "profile.json", **about), FAMILY, tmp_path / "cache.weir")


def test_a_folder_and_thresholds_of_images_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is a folder"):
        LocalCache(CONFIG, FAMILY, Path("."))
    with pytest.raises(ConfigError, match="compare a prompt and an image"):
        LocalCache(CONFIG.model_copy(update={"selector": "modm"}), FAMILY, Path("cache.weir"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [("cache.weir", b"something else", "not an export of a cache"), ("cache.weir.secret", b"short", "not the secret")],
)
def test_a_file_that_is_not_a_cache_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as caught:
        LocalCache(CONFIG, FAMILY, tmp_path / "cache.weir")
    assert str(tmp_path / name) in caught.value.message
