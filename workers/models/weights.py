"""Loads the diffusers pipelines of a family file, and checks the files of their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import init_empty_weights
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from weir.config import CLIP_SCORE, FamilyConfig, Scheduler, VariantConfig
from weir.errors import ConfigError

Pipeline: TypeAlias = Any  # one of the classes below, whose attributes diffusers creates at run time
_PIPELINES = {cls.__name__: cls for cls in (StableDiffusionXLPipeline, StableDiffusionPipeline)}
#: Parts of a pipeline that have no weights or are not loaded.
_WEIGHTLESS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor", "safety_checker", "image_encoder")
_HUB = "give a local folder, or a repository of the Hugging Face hub that this machine can reach"


@dataclass(frozen=True, slots=True)
class _Source:
    """A reference of a family file to weights, with its place in the file for errors."""

    family: str
    key: str
    reference: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """Path of the local folder or file; None for a hub repository."""
        path = Path(self.reference)
        return path if path.is_absolute() or path.exists() else None

    def error(self, what: str, remedy: str) -> ConfigError:
        revision = f" at revision {self.revision}" if self.revision else ""
        return ConfigError(f"family {self.family}: {self.key}: {self.reference}{revision}: {what}; {remedy}")


def load_pipelines(family: FamilyConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Pipeline]:
    """Loads the pipeline of each variant on ``device``. Common parts are shared in memory.

    Raises:
        ConfigError: names the key of the family file, the path and the remedy.
    """
    check_family(family)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded: dict[tuple[str, str | None], Pipeline] = {}

    def load_once(source: _Source) -> Pipeline:
        place = (source.reference, source.revision)
        if place not in loaded:
            loaded[place] = _load_pipeline(source, family.weights, dtype)
        return loaded[place]

    pipelines: dict[str, Pipeline] = {}
    for key, variant in family.variants.items():
        base = load_once(_pipeline_source(family, key))
        unet = base.unet
        if variant.unet:
            unet = _load_unet(_unet_source(family, key), variant, base, family.weights, dtype)
        pipelines[key] = _assemble(base, unet, variant.scheduler)
    for pipeline in pipelines.values():
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def check_family(family: FamilyConfig) -> None:
    """Checks the family's local folders without loading weights.

    Raises:
        ConfigError: a folder, a part of it, or a weights file is missing or damaged.
    """
    for key, variant in family.variants.items():
        source = _pipeline_source(family, key)
        if (folder := source.folder) is not None:
            _check_pipeline(source, folder)
        if variant.unet:
            source = _unet_source(family, key)
            if (folder := source.folder) is not None:
                _check_unet(source, folder, variant.unet_file)
        if variant.discriminator is not None and variant.discriminator != CLIP_SCORE:
            source = _Source(family.name, f"{key}.discriminator", variant.discriminator, None)
            remedy = "the family's training recipe writes it (`weir train`)"
            _check_model(source, Path(variant.discriminator), "config.json", remedy)


def scheduler_for(name: Scheduler, config: Any) -> DDIMScheduler | EulerDiscreteScheduler:
    """Creates the scheduler ``name`` with the noise schedule and prediction type of ``config``."""
    settings = dict(config)
    settings.setdefault("clip_sample", False)  # diffusers clips by default, which is only right for pixels
    if name == "ddim":
        return DDIMScheduler.from_config(settings)
    if name == "euler-trailing":
        settings["timestep_spacing"] = "trailing"
    return EulerDiscreteScheduler.from_config(settings)


def is_sdxl(pipeline: Pipeline) -> bool:
    """Whether the pipeline has SDXL's two text encoders and pooled prompt, and not one encoder as SD 1 and 2."""
    return isinstance(pipeline, StableDiffusionXLPipeline)


# ------------------------------------------------------------------------------------------------ sources


def _pipeline_source(family: FamilyConfig, key: str) -> _Source:
    variant = family.variants[key]
    if variant.pipeline:
        return _Source(family.name, f"{key}.pipeline", variant.pipeline, variant.revision)
    return _Source(family.name, "pipeline", family.pipeline, family.revision)


def _unet_source(family: FamilyConfig, key: str) -> _Source:
    variant = family.variants[key]
    return _Source(family.name, f"{key}.unet", str(variant.unet), variant.revision)


# ------------------------------------------------------------------------------------------------ loading


def _load_pipeline(source: _Source, weights: str | None, dtype: torch.dtype) -> Pipeline:
    try:
        index = DiffusionPipeline.load_config(source.reference, revision=source.revision)
        extra = _without_extras(_pipeline_class(source, index))
        return DiffusionPipeline.from_pretrained(
            source.reference,
            revision=source.revision,
            variant=weights,
            dtype=dtype,
            use_safetensors=True,  # never a pickle
            **extra,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise source.error(_first_line(error), _HUB if source.folder is None else _refetch(weights)) from error


def _load_unet(
    source: _Source, variant: VariantConfig, base: Pipeline, weights: str | None, dtype: torch.dtype
) -> UNet2DConditionModel:
    try:
        file = _unet_file(source, variant.unet_file)
        if file is not None:
            return _unet_from_file(source, file, base, dtype)
        return UNet2DConditionModel.from_pretrained(
            source.reference, revision=source.revision, variant=weights, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise source.error(_first_line(error), _HUB if source.folder is None else _refetch(weights)) from error


def _unet_file(source: _Source, name: str | None) -> Path | None:
    """Path of the variant's single-file UNet, fetched if necessary; None if the UNet is a diffusers folder."""
    folder = source.folder
    if name is None:
        return folder if folder is not None and folder.is_file() else None
    if folder is not None:
        return folder / name
    return Path(hf_hub_download(source.reference, name, revision=source.revision))


def _unet_from_file(source: _Source, file: Path, base: Pipeline, dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet with the base's configuration and the weights of a safetensors file with diffusers' key names."""
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(base.unet.config)
    state = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    try:
        unet.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise source.error(
            f"{file.name} does not fit the UNet of {base.config._name_or_path}: {_first_line(error)}",
            "the file must hold a UNet of the same architecture with diffusers' key names",
        ) from None
    return unet.eval().requires_grad_(False)


def _assemble(base: Pipeline, unet: UNet2DConditionModel, scheduler: Scheduler) -> Pipeline:
    """A pipeline with the given UNet and scheduler and the base's other parts."""
    parts = {**base.components, "unet": unet, "scheduler": scheduler_for(scheduler, base.scheduler.config)}
    if is_sdxl(base):
        zeros = base.config.force_zeros_for_empty_prompt
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _without_extras(kind: Any) -> dict[str, Any]:
    """Arguments that switch off parts that change images: SDXL's watermark and Stable Diffusion 1's safety checker."""
    if kind is StableDiffusionXLPipeline:
        return {"add_watermarker": False}
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


# ------------------------------------------------------------------------------------------------- checks


def _pipeline_class(source: _Source, index: Any) -> Any:
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in _PIPELINES:
        raise source.error(f"the pipeline class is {name}", f"Weir serves {' and '.join(_PIPELINES)}")
    return _PIPELINES[name]


def _check_pipeline(source: _Source, folder: Path) -> None:
    remedy = "give a folder written by save_pretrained, or a hub repository"
    index = _read_json(source, folder / "model_index.json", remedy)
    _pipeline_class(source, index)
    for part, kind in index.items():
        if part.startswith("_") or not isinstance(kind, list) or kind[1] is None or part in _WEIGHTLESS:
            continue
        _check_model(source, folder / part, "config.json", "fetch the pipeline again")


def _check_unet(source: _Source, folder: Path, name: str | None) -> None:
    if name is None and folder.is_dir():
        _check_model(source, folder, "config.json", "give a UNet written by save_pretrained")
        return
    file = folder if name is None else folder / name
    if file.suffix != ".safetensors":
        raise source.error(f"{file.name} is not a .safetensors file", "other formats can run code when loaded")
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in folder.glob("*.safetensors"))) or "no .safetensors file"
        raise source.error(f"there is no file {file.name}", f"unet_file must name a file in it; found: {there}")
    _check_header(source, file)


def _check_model(source: _Source, folder: Path, config: str, remedy: str) -> None:
    _read_json(source, folder / config, remedy)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise source.error(f"there is no .safetensors file in {folder}", remedy)
    for file in files:
        _check_header(source, file)


def _read_json(source: _Source, file: Path, remedy: str) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise source.error(f"there is no file {file}", remedy) from None
    except (OSError, ValueError) as error:
        raise source.error(f"{file} cannot be read: {_first_line(error)}", remedy) from None


def _check_header(source: _Source, file: Path) -> None:
    try:
        with safe_open(file, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise source.error(f"{file} is damaged: {_first_line(error)}", "fetch or write it again") from None


def _refetch(weights: str | None) -> str:
    return f"check that its {weights} files exist (weights: {weights})" if weights else "fetch it again"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] if lines else type(error).__name__
