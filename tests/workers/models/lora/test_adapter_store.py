"""Adapters are loaded when they are first used, within a bound, and checked before anything is generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from testing.random_adapters import Tensors, random_adapter, write_kohya, write_peft
from tests.workers.samples import family, image_request, variant
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import FamilyConfig
from weir.core import Resume
from weir.errors import ConfigError, StateRefused
from weir.plan import HEAVY
from weir.prompts import parsed
from workers.engine.engine import denoise_job
from workers.models.checkpoint import check_family
from workers.models.family import Family
from workers.models.fetch import repositories
from workers.models.lora.adapter_store import MEBIBYTE, AdapterStore


def config(folders: Path, adapters: dict[str, Any] | None = None, kind: str = "sdxl", **fields: Any) -> FamilyConfig:
    turbo = variant("l", pipeline=str(folders / f"{kind}-turbo"))
    return family(folders / kind, turbo, variant("h", guidance=2.0, steps=4), adapters=adapters or {}, **fields)


@pytest.fixture(scope="module")
def engine(folders: Path) -> Family:
    return Family.load(config(folders))


@pytest.fixture(scope="module")
def tensors(engine: Family) -> Tensors:
    return random_adapter(engine.pipelines[HEAVY], 1)


@pytest.fixture
def write(tensors: Tensors, tmp_path: Path) -> Callable[..., AdapterUse]:
    """Writes an adapter with changed tensors, and returns its use."""

    def written(name: str, change: Callable[[Tensors], Tensors] = lambda it: it) -> AdapterUse:
        return use(name, write_peft(change(dict(tensors)), tmp_path / f"{name}.safetensors"))

    return written


def use(name: str, path: Path, scale: float = 1.0) -> AdapterUse:
    return AdapterUse(name, scale, AdapterWeights(str(path)))


def store(engine: Family, **fields: Any) -> AdapterStore:
    return AdapterStore(engine.config.model_copy(update=fields), engine._adapters, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------- memory


def test_an_adapter_is_read_once_and_again_after_its_file_was_replaced(engine: Family, write: Any) -> None:
    kept, wanted = store(engine), write("a")
    [first], [again] = kept.load([wanted]), kept.load([AdapterUse("a", 0.5, wanted.weights)])
    assert first.adapter is again.adapter
    write("a", lambda it: {name: 2 * tensor for name, tensor in it.items()})
    [replaced] = kept.load([wanted])
    assert replaced.adapter.id != first.adapter.id


def test_adapters_that_were_not_used_for_longest_make_room(engine: Family, write: Any) -> None:
    def padded(tensors: Tensors) -> Tensors:
        """One layer with a rank that makes the adapter take between a third and half of a MiB."""
        name = "unet.mid_block.attentions.0.proj_in.lora_A.weight"
        rank = 3 * MEBIBYTE // 10 // 4 // (2 * tensors[name].shape[1])
        return {
            name: torch.ones(rank, *tensors[name].shape[1:]),
            name.replace("_A", "_B"): torch.ones(tensors[name].shape[1], rank, *tensors[name].shape[2:]),
        } | {k: v for k, v in tensors.items() if "mid_block" not in k}

    kept, [a, b, c] = store(engine, adapters_mib=1), [write(name, padded) for name in "abc"]
    first = {name: kept.load([it])[0].adapter for name, it in (("a", a), ("b", b))}
    assert kept.load([a])[0].adapter is first["a"]
    kept.load([c])
    assert kept.size_bytes <= MEBIBYTE
    assert kept.load([a])[0].adapter is first["a"]
    assert kept.load([b])[0].adapter is not first["b"]


def test_an_adapter_larger_than_the_bound_is_refused(engine: Family, write: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.models.lora.adapter_store.MEBIBYTE", 1024)
    with pytest.raises(ConfigError, match=r"adapters\.a: .* and adapters_mib is 1; raise adapters_mib"):
        store(engine, adapters_mib=1).load([write("a")])


# ------------------------------------------------------------------------------------------------------- states


def test_a_state_of_other_adapters_or_scales_is_never_resumed_from(engine: Family, write: Any) -> None:
    a, b = write("a"), write("b", lambda it: {name: -tensor for name, tensor in it.items()})
    half = AdapterUse("a", 0.5, a.weights)

    def state(*uses: AdapterUse) -> Any:
        [output] = engine.generate(HEAVY, [image_request(adapters=uses, capture="p")])
        return output.states[0]

    resumed = image_request("b", adapters=(a,), resume=Resume("key", 1))
    engine.check(denoise_job(engine.config, HEAVY, resumed, state(a)))
    for other in (state(), state(b), state(half), state(a, b)):
        with pytest.raises(StateRefused, match="model"):
            engine.check(denoise_job(engine.config, HEAVY, resumed, other))


def test_prompts_are_encoded_again_for_an_adapter_of_the_text_encoders_only(engine: Family, write: Any) -> None:
    with_text = write("a")
    without = write("b", lambda it: {k: v for k, v in it.items() if k.startswith("unet.")})
    model, text = engine._adapters[HEAVY], ("", parsed("a cat", "plain"))
    texts = [
        engine._prompts.read(model, [text], engine._loras.load(uses))[text] for uses in ((), (without,), (with_text,))
    ]
    assert texts[0] is texts[1]
    assert not torch.equal(texts[0].tensors["text_embeds"], texts[2].tensors["text_embeds"])


def test_an_image_without_adapters_is_the_same_after_images_with_them(engine: Family, write: Any) -> None:
    [before] = engine.generate(HEAVY, [image_request()])
    engine.generate(HEAVY, [image_request(adapters=(write("a"),))])
    [after] = engine.generate(HEAVY, [image_request()])
    assert before.image == after.image


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda it: {"unet.mid_block.attentions.0.proj_in.dora_scale": torch.ones(1), **it}, "of the kind DoRA"),
        (lambda it: {"lora_unet_a.hada_w1_a": torch.ones(1, 2)}, "of the kind LoHa"),
        (lambda it: {"conv_in.weight": torch.ones(4, 4)}, "no tensors of a LoRA, but conv_in.weight"),
        (lambda it: {f"transformer.{k}": v for k, v in it.items()}, "is of no known format"),
        (lambda it: it | {"unet.nowhere.lora_A.weight": torch.ones(4, 2)}, "lacks its other half"),
        (
            lambda it: it | {f"unet.nowhere.lora_{s}.weight": torch.ones(4, 4) for s in "AB"},
            "it changes nowhere of the unet of light, which has no such layer",
        ),
        (
            lambda it: {k: torch.cat([v, v], 1) if k.endswith("proj_in.lora_A.weight") else v for k, v in it.items()},
            "proj_in of the unet of light has the shape",
        ),
        (lambda it: it | {f"unet.nowhere.lora_{side}.weight": torch.ones(4) for side in "AB"}, "is no matrix"),
        (
            lambda it: (
                {"lora_unet_a.lora_down.weight": torch.ones(4, 2), "lora_unet_a.lora_up.weight": torch.ones(2, 4)}
                | {"lora_unet_a.alpha": torch.ones(3)}
            ),
            "its tensors cannot be read",
        ),
        (lambda it: {k: v * float("nan") for k, v in it.items()}, "not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name_before_anything_is_generated(
    engine: Family, write: Any, change: Any, named: str
) -> None:
    wrong = write("wrong", change)
    with pytest.raises(ConfigError, match=rf"family tiny: adapters\.wrong: .*wrong\.safetensors: .*{named}.*; "):
        engine.prepare(image_request(adapters=(wrong,)))
    if "finite" not in named:
        with pytest.raises(ConfigError, match=named):
            engine.check_adapter(wrong)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not safetensors at all"], ids=["empty", "zeros", "text"])
def test_a_damaged_or_missing_file_is_refused(engine: Family, folders: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.safetensors"
    settings = config(folders, {"a": {"file": str(file)}})
    for check in (lambda: check_family(settings), lambda: engine.check_adapter(use("a", file))):
        with pytest.raises(ConfigError, match=r"adapters\.a: .*there is no such file; give the path"):
            check()
    file.write_bytes(content)
    for check in (lambda: check_family(settings), lambda: engine.check_adapter(use("a", file))):
        with pytest.raises(ConfigError, match=r"adapters\.a: .*is damaged: .*fetch or write it again"):
            check()


@pytest.mark.parametrize("kohya", [True, False])
def test_an_adapter_for_another_architecture_is_refused_by_its_header(
    folders: Path, tmp_path: Path, kohya: bool, tensors: Tensors
) -> None:
    path = tmp_path / "a.safetensors"
    write_kohya(tensors, path, 4.0) if kohya else write_peft(tensors, path)
    check_family(config(folders, {"a": {"file": str(path)}}))
    with pytest.raises(ConfigError, match=r"adapters\.a: .*attn2.to_k.* has the shape \[4, 64\]; .* have 32 values"):
        check_family(config(folders, {"a": {"file": str(path)}}, kind="sd"))


def test_a_family_whose_adapter_does_not_fit_does_not_load(folders: Path, tmp_path: Path, tensors: Tensors) -> None:
    path = write_peft({k: v for k, v in tensors.items() if "down_blocks.1" in k}, tmp_path / "a.safetensors")
    small = variant("l", unet=str(folders / "light_unet"))
    with pytest.raises(ConfigError, match=r"adapters\.a: .*of the unet of light has the shape"):
        Family.load(family(folders / "sdxl", small, variant("h"), adapters={"a": {"file": str(path)}}))


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({}, "give either file or repository"),
        ({"file": "a.safetensors", "repository": "b/c"}, "give either file or repository"),
        ({"file": "a.ckpt"}, "not a .safetensors file"),
        ({"file": "a.safetensors", "revision": "1"}, "belong to a repository"),
        ({"repository": "b/c"}, "weight_name is missing"),
        ({"repository": "b/c", "weight_name": "a.bin"}, "weight_name"),
    ],
)
def test_an_adapter_of_a_family_file_has_one_source(folders: Path, adapter: dict[str, str], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        config(folders, {"a": adapter})


def test_an_adapter_of_a_repository_is_fetched_with_the_other_weights(folders: Path) -> None:
    of_hub = {"repository": "someone/night", "revision": "abc", "weight_name": "night.safetensors"}
    [repository] = repositories(config(folders, {"night": of_hub}))
    assert repository.key == "adapters.night"
    assert (repository.repository, repository.revision, repository.file) == tuple(of_hub.values())


def test_a_file_that_is_replaced_by_a_broken_one_fails_its_own_requests_only(engine: Family, write: Any) -> None:
    fine, broken = write("a"), write("b")
    Path(broken.weights.reference).write_bytes(b"broken")
    with pytest.raises(ConfigError, match=r"adapters\.b: .*is damaged"):
        engine.prepare(image_request(adapters=(fine, broken)))
    [output] = engine.generate(HEAVY, [image_request(adapters=(fine,))])
    assert output.error is None
