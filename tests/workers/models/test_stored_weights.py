"""Weights are found and measured without loading them, in local folders and in the hub's cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from weir.assets import DEPLOY, FAMILY
from weir.config import FamilyConfig, load_family
from weir.errors import ServiceError
from workers.models import stored_weights
from workers.models.family import Family
from workers.models.stored_weights import check_available, missing, size_bytes

COMMIT = "a" * 40
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": [None, None],
}


def family(**more: Any) -> FamilyConfig:
    variants = {key: {"name": key, "scheduler": "ddim", "steps": 1, "guidance": 1} for key in ("light", "heavy")}
    variants["light"] |= more.pop("light", {})
    fields = {"name": "two", "pipeline": "weir/base", "revision": COMMIT, "size": 64, "light": variants["light"]}
    return FamilyConfig.model_validate({**fields, "heavy": variants["heavy"], **more})


def pipeline(folder: Path, *, suffix: str = "", elements: int = 6) -> Path:
    """Writes a pipeline with a UNet, and a safety checker of as many elements, which is not loaded."""
    tensors = {"a": np.zeros((2, elements // 2), np.float32)}
    for part in ("unet", "safety_checker"):
        (folder / part).mkdir(parents=True)
        save_file(tensors, folder / part / f"diffusion_pytorch_model{suffix}.safetensors")
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub; returns the folder of a snapshot of weir/base in it."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    found = stored_weights.try_to_load_from_cache
    monkeypatch.setattr(
        stored_weights, "try_to_load_from_cache", lambda *args, **kw: found(*args, **kw, cache_dir=cache)
    )
    return cache / "models--weir--base" / "snapshots" / COMMIT


def test_repositories_that_were_never_fetched_are_missing(hub: Path) -> None:
    named = [it.repository for it in missing(family(light={"unet": "weir/light", "unet_file": "light.safetensors"}))]
    assert named == ["weir/base", "weir/light"]
    assert size_bytes(family(), 2) == 0


def test_a_fetched_repository_is_found_and_measured(hub: Path) -> None:
    pipeline(hub)
    assert missing(family()) == []
    assert size_bytes(family(), 2) == 12


def test_another_revision_of_a_repository_is_missing(hub: Path) -> None:
    pipeline(hub)
    assert [it.key for it in missing(family(revision="b" * 40))] == ["pipeline"]


def test_a_pipeline_that_variants_share_counts_once_and_a_unet_of_its_own_too(tmp_path: Path, hub: Path) -> None:
    unet = tmp_path / "light.safetensors"
    save_file({"a": np.zeros(10, np.float16)}, unet)
    base = pipeline(tmp_path / "base")
    two = family(pipeline=str(base), light={"unet": str(unet)})
    assert missing(two) == []
    assert size_bytes(two, 4) == 4 * (6 + 10)


def test_the_named_file_set_counts_and_no_other(tmp_path: Path) -> None:
    base = pipeline(tmp_path / "base", suffix=".fp16")
    save_file({"a": np.zeros(99, np.float32)}, base / "unet" / "diffusion_pytorch_model.safetensors")
    assert size_bytes(family(pipeline=str(base), weights="fp16"), 2) == 12


def test_a_variant_with_a_file_set_of_its_own_counts_the_files_of_its_set(tmp_path: Path) -> None:
    base, own = pipeline(tmp_path / "base"), pipeline(tmp_path / "own", suffix=".bf16", elements=10)
    config = family(pipeline=str(base), light={"pipeline": str(own), "weights": "bf16"})
    assert size_bytes(config, 2) == 2 * (6 + 10)


def test_the_embedded_family_is_here_and_takes_as_much_memory_as_its_files() -> None:
    embedded = load_family(FAMILY)
    assert missing(embedded) == []
    assert 10_000_000 < size_bytes(embedded, 4) < 100_000_000


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(stored_weights.hub, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("use", [check_available, Family.load], ids=["before a start", "at load"])
def test_weights_that_are_neither_here_nor_can_be_fetched_are_named(
    no_hub: None, monkeypatch: pytest.MonkeyPatch, use: Callable[[FamilyConfig], object]
) -> None:
    family = load_family(DEPLOY / "families" / "sdxl-lightning.yaml")
    with pytest.raises(ServiceError, match=r"diffusion-xl.*http://127\.0\.0\.1:9 does not answer.*run `weir fetch`"):
        use(family)
    monkeypatch.setattr(stored_weights.hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServiceError, match=r"not on this machine, and HF_HUB_OFFLINE is set"):
        use(family)


def test_weights_on_this_machine_need_no_hub(no_hub: None) -> None:
    check_available(load_family(FAMILY))
