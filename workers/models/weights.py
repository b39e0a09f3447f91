"""Loads the diffusers pipelines of a family file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

from weir.config import FamilyConfig, VariantConfig
from workers.models.architectures.architecture import Architecture, Pipeline
from workers.models.architectures.registry import ARCHITECTURES
from workers.models.checkpoint import (
    architecture_of,
    check_configs,
    check_family,
    check_inpainting,
    check_inversion,
    check_single_file,
    check_vae,
    other_kind,
)
from workers.models.eight_bit import keep_in_eight_bits
from workers.models.source import (
    Source,
    checkpoint_source,
    denoiser_source,
    family_file,
    family_source,
    first_lines,
    inpainting_key,
    inpainting_source,
    inversion_sources,
    pipeline_source,
    vae_source,
)
from workers.models.tensor_files import read_shapes

_HUB = "give a local folder, or a repository of the Hugging Face hub that this machine can reach"


def load_pipelines(family: FamilyConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Pipeline]:
    """Loads the pipeline of each variant on ``device``, with its own scheduler. Common parts are shared in memory.

    Returns:
        By key of the variant, and by :func:`inpainting_key` that with the inpainting UNet of a variant that has one.

    Raises:
        ConfigError: names the key of the family file, the path and the remedy.
    """
    check_family(family)
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    loaded: dict[tuple[str | None, ...], Pipeline] = {}

    def load_once(source: Source, file: Source | None, lender: Pipeline | None = None) -> Pipeline:
        place = (source.reference, source.revision, source.file_set, None if file is None else file.reference)
        if place not in loaded:
            whole = _load_pipeline(source, dtype, lender) if file is None else _load_file(source, file, dtype)
            if lender is None:
                _add_words(family, whole)
                for part in family.eight_bit_encoders:
                    keep_in_eight_bits(getattr(whole, part))
            loaded[place] = whole
        return loaded[place]

    pipelines: dict[str, Pipeline] = {}
    vae = _load_vae(family, dtype)
    for key, variant in family.variants.items():
        lender = load_once(family_source(family), family_file(family)) if variant.shares_encoders else None
        base = load_once(pipeline_source(family, key), checkpoint_source(family, key), lender)
        architecture = ARCHITECTURES[type(base).__name__]
        parts = {} if vae is None else {"vae": vae}
        if variant.unet:
            denoiser = _load_denoiser(denoiser_source(family, key), variant, architecture(base), dtype)
            parts[architecture.denoiser_part] = denoiser
        # Checked again, because nothing of a hub repository was there before.
        check_configs(family, key, architecture, _configs({**base.components, **parts}))
        pipelines[key] = architecture.assemble(base, **parts)
    pipelines |= _load_inpainting(family, pipelines, dtype)
    for pipeline in pipelines.values():
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def _load_pipeline(source: Source, dtype: torch.dtype, lender: Pipeline | None) -> Pipeline:
    """Loads a pipeline.

    Args:
        lender: a pipeline with all of its parts but denoiser and scheduler, which are then not loaded again.
    """
    try:
        index = DiffusionPipeline.load_config(source.reference, revision=source.revision)
        architecture = architecture_of(source, index)
        lent = {} if lender is None else _lent(source, architecture, lender)
        return DiffusionPipeline.from_pretrained(
            source.reference,
            revision=source.revision,
            variant=source.file_set,
            dtype=dtype,
            use_safetensors=True,  # never a pickle
            **{**architecture.loading, **lent},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise source.error(first_lines(error), _HUB if source.folder is None else _refetch(source.file_set)) from error


def _lent(source: Source, architecture: type[Architecture], lender: Pipeline) -> dict[str, Any]:
    """The parts that a pipeline has from another one."""
    if type(lender).__name__ != architecture.pipeline_class:
        raise other_kind(source, architecture, type(lender).__name__)
    own = (architecture.denoiser_part, "scheduler")
    return {part: it for part, it in lender.components.items() if part not in own}


def _add_words(family: FamilyConfig, pipeline: Pipeline) -> None:
    """Adds the words of the family's textual inversions to a pipeline's text encoders."""
    architecture, configs = ARCHITECTURES[type(pipeline).__name__], _configs(pipeline.components)
    for word, source in inversion_sources(family).items():
        tensors = load_file(source.reference)
        names = check_inversion(source, architecture, configs, {it: tuple(t.shape) for it, t in tensors.items()})
        for encoder, (tokenizer, _, _) in architecture.inversion_widths(configs).items():
            model, words = getattr(pipeline, encoder), getattr(pipeline, tokenizer)
            try:
                pipeline.load_textual_inversion(
                    {word: tensors[names[encoder]]}, token=word, text_encoder=model, tokenizer=words
                )
            except ValueError as error:
                raise source.error(first_lines(error), "choose another word") from error


def _load_file(source: Source, file: Source, dtype: torch.dtype) -> Pipeline:
    """Loads a pipeline from a single file, with the configurations and tokenizers of a local folder."""
    try:
        architecture = architecture_of(source, DiffusionPipeline.load_config(source.reference))
        pipeline = getattr(diffusers, architecture.pipeline_class).from_single_file(
            file.reference, config=source.reference, local_files_only=True, dtype=dtype, **architecture.loading
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise file.error(
            first_lines(error), f"check that the configurations in {source.reference} are its own"
        ) from error
    for part in ("vae", architecture.denoiser_part, *architecture.text_encoders):
        for name, tensor in getattr(pipeline, part).named_parameters():
            if tensor.is_meta:
                raise file.error(f"it lacks {name} of {part}", "use a file with all weights of the model")
    return pipeline


def _load_denoiser(source: Source, variant: VariantConfig, base: Architecture, dtype: torch.dtype) -> Any:
    try:
        file = _single_file(source, variant.unet_file)
        if file is not None:
            return _denoiser_from_file(source, file, base.denoiser, dtype)
        return type(base.denoiser).from_pretrained(
            source.reference, revision=source.revision, variant=source.file_set, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise source.error(first_lines(error), _HUB if source.folder is None else _refetch(source.file_set)) from error


def _load_inpainting(
    family: FamilyConfig, pipelines: Mapping[str, Pipeline], dtype: torch.dtype
) -> dict[str, Pipeline]:
    """The pipelines of variants with their inpainting UNets; each UNet is loaded once."""
    loaded: dict[Source, Any] = {}
    found: dict[str, Pipeline] = {}
    for key, base in pipelines.items():
        if (source := inpainting_source(family, key)) is None:
            continue
        architecture, place = ARCHITECTURES[type(base).__name__], replace(source, key="")
        kind, part = type(architecture(base).denoiser), architecture.denoiser_part
        where = {"pretrained_model_name_or_path": source.reference, "revision": source.revision}
        try:
            own = {
                "index": DiffusionPipeline.load_config(**where),
                "scheduler": DDIMScheduler.load_config(**where, subfolder="scheduler"),
                part: kind.load_config(**where, subfolder=part),
            }
            check_inpainting(family, key, architecture, _configs(base.components), own)
            if place not in loaded:
                loaded[place] = kind.from_pretrained(
                    **where, subfolder=part, variant=source.file_set, dtype=dtype, use_safetensors=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            hint = _HUB if source.folder is None else _refetch(source.file_set)
            raise source.error(first_lines(error), hint) from error
        found[inpainting_key(key)] = architecture.assemble(base, **{part: loaded[place]})
    return found


def _load_vae(family: FamilyConfig, dtype: torch.dtype) -> Any:
    """The VAE that replaces those of the pipelines; None if there is none."""
    source = vae_source(family)
    if source is None:
        return None
    try:
        config = AutoencoderKL.load_config(source.reference, revision=source.revision)
        check_vae(source, str(config["_class_name"]))
        # Its files need not be of the pipelines' set: the VAE of SDXL that suits float16 has plain files only.
        return AutoencoderKL.from_pretrained(
            source.reference, revision=source.revision, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise source.error(first_lines(error), _HUB if source.folder is None else _refetch(None)) from error


def _single_file(source: Source, name: str | None) -> Path | None:
    """Path of a denoiser in a single file, fetched if necessary; None if it is a diffusers folder."""
    folder = source.folder
    if name is None:
        return folder if folder is not None and folder.is_file() else None
    if folder is not None:
        return folder / name
    return Path(hf_hub_download(source.reference, name, revision=source.revision))


def _denoiser_from_file(source: Source, file: Path, base: Any, dtype: torch.dtype) -> Any:
    """A denoiser with the base's configuration and the weights of a safetensors file with diffusers' tensor names."""
    shapes = {name: tuple(tensor.shape) for name, tensor in base.state_dict().items()}
    check_single_file(source, file.name, read_shapes(file), shapes)
    with init_empty_weights():
        denoiser = type(base).from_config(base.config)
    state = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    denoiser.load_state_dict(state, strict=True, assign=True)
    return denoiser.eval().requires_grad_(False)


def _configs(components: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configuration of each part that has one."""
    configs = {part: config for part, it in components.items() if (config := getattr(it, "config", None)) is not None}
    return {part: config if isinstance(config, Mapping) else config.to_dict() for part, config in configs.items()}


def _refetch(weights: str | None) -> str:
    return f"check that its {weights} files exist (weights: {weights})" if weights else "fetch it again"
