"""Checks a family's weights by their configurations and headers, before anything is loaded. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from weir.config import FamilyConfig
from weir.core import ImageSize
from weir.errors import ConfigError
from weir.json_files import read_json
from workers.models.architectures.architecture import Architecture, Configs
from workers.models.architectures.registry import ARCHITECTURES, INPAINTING
from workers.models.lora.adapter_header import check_header, check_taken
from workers.models.source import (
    Source,
    adapter_source,
    checkpoint_source,
    denoiser_source,
    family_file,
    family_source,
    first_lines,
    inpainting_source,
    inversion_sources,
    pipeline_source,
    vae_source,
)
from workers.models.tensor_files import Shapes, file_set, misfit, read_shapes

#: Beginnings of the names of parts of a pipeline that have no weights or are not loaded.
_WEIGHTLESS = ("scheduler", "tokenizer", "feature_extractor", "safety_checker", "image_encoder")
_VAE = "AutoencoderKL"
_VAE_REMEDY = f"give an {_VAE} written by save_pretrained, or a hub repository"
_CHECKPOINT_REMEDY = "give a local folder with the model's configurations, so that nothing is fetched"
_LAYOUT = "the file must hold a whole model with the original repositories' names, beside configurations of its kind"
_INVERSION = "use a textual inversion that was trained for this kind of model"
_INPAINTING = "name an inpainting pipeline of the variant's architecture"
_REMEDY = "give a folder written by save_pretrained, or a hub repository"


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A pipeline's folder.

    Attributes:
        denoiser: shapes of the denoiser's tensors; None if they are in a single file, with other names.
    """

    architecture: type[Architecture]
    configs: Configs
    denoiser: Shapes | None


def check_family(family: FamilyConfig) -> None:
    """Checks the family's local folders by their configurations and headers.

    Raises:
        ConfigError: a file is missing or damaged, or a model is of a kind that cannot be served.
    """
    vae = _read_vae(family)
    for key, variant in family.variants.items():
        source, base = pipeline_source(family, key), None
        if (folder := source.folder) is not None:
            base = _read_pipeline(source, folder, checkpoint_source(family, key), _lender(family, key))
        elif (whole := checkpoint_source(family, key)) is not None:
            raise whole.error(f"{source.key} is {source.reference}, a repository of the hub", _CHECKPOINT_REMEDY)
        configs = {} if base is None else {**base.configs, **vae}
        if variant.unet and (folder := (own := denoiser_source(family, key)).folder) is not None:
            if variant.unet_file is None and folder.is_dir():
                config = _read_denoiser(own, folder)
                configs = {**configs, **({base.architecture.denoiser_part: config} if base else {})}
            else:
                file = _single_file(own, folder, variant.unet_file)
                shapes = _shapes(own, file)
                if base is not None and base.denoiser is not None:
                    check_single_file(own, file.name, shapes, base.denoiser)
        inpainting = _read_inpainting(family, key)
        if base is not None:
            check_configs(family, key, base.architecture, configs)
            if inpainting is not None:
                check_inpainting(family, key, base.architecture, configs, inpainting)
            for it in inversion_sources(family).values():
                _check_inversion(it, base.architecture, configs)
            for use in family.adapter_uses:
                check_taken(own := adapter_source(family.name, use), base.architecture)
                if use.weights.is_file:
                    check_header(own, configs[base.architecture.denoiser_part].get("cross_attention_dim"))
        if variant.discriminator_folder is not None:
            judge = Source(family.name, f"{key}.discriminator", variant.discriminator_folder)
            remedy = "the family's training recipe writes it (`weir train`)"
            _read_config(judge, Path(variant.discriminator_folder) / "config.json", remedy)
            _read_headers(judge, Path(variant.discriminator_folder), remedy)


def check_configs(family: FamilyConfig, key: str, architecture: type[Architecture], configs: Configs) -> None:
    """Checks the configurations of a variant's parts against its architecture, its scheduler and the family's sizes.

    Raises:
        ConfigError: names the part, the key of its configuration and the remedy.
    """
    for part, what, remedy in architecture.mismatches(configs, family.samplers_of(key)):
        of_denoiser = part == architecture.denoiser_part
        source = denoiser_source(family, key) if of_denoiser else pipeline_source(family, key)
        raise source.error(f"{part}: {what}", remedy)
    if strays := sorted({*family.eight_bit_encoders} - {*architecture.text_encoders}):
        has = " and ".join(architecture.text_encoders)
        what = f"eight_bit_encoders: {strays[0]}: a {architecture.pipeline_class} has no such text encoder"
        raise ConfigError(f"family {family.name}: {what}; it has {has}")
    _check_sizes(family, key, architecture, configs)


def check_inpainting(
    family: FamilyConfig, key: str, architecture: type[Architecture], configs: Configs, own: Configs
) -> None:
    """Checks the inpainting UNet of a variant.

    Args:
        configs: of the variant's parts.
        own: of the inpainting pipeline's UNet and scheduler, and its ``index``.

    Raises:
        ConfigError: names the key of the configuration and the remedy.
    """
    source, part = inpainting_source(family, key), architecture.denoiser_part
    assert source is not None
    if architecture.inpainting_class is None:
        raise source.error(f"Weir has no inpainting for a {architecture.pipeline_class}", "leave inpainting out")
    if (kind := own["index"].get("_class_name")) != architecture.inpainting_class:
        raise source.error(f"the pipeline class is {kind}; {key} needs a {architecture.inpainting_class}", _INPAINTING)
    latent = configs["vae"].get("latent_channels", 4)
    if (given := own[part].get("in_channels", 4)) != 2 * latent + 1:
        needed = f"{2 * latent + 1}: the latent, the mask and the latent of the picture"
        raise source.error(f"{part}: in_channels is {given}; an inpainting UNet has {needed}", _INPAINTING)
    kinds = [it["scheduler"].get("prediction_type", "epsilon") for it in (own, configs)]
    if kinds[0] != kinds[1]:
        raise source.error(f"scheduler: prediction_type is {kinds[0]}, and that of {key} is {kinds[1]}", _INPAINTING)
    # In all other respects it has to be a UNet as the variant's own.
    alike = {**configs, part: {**own[part], "in_channels": latent}}
    for where, what, _ in architecture.mismatches(alike, family.samplers_of(key)):
        raise source.error(f"{where}: {what}", _INPAINTING)


def _check_sizes(family: FamilyConfig, key: str, architecture: type[Architecture], configs: Configs) -> None:
    factor, most = architecture.factor(configs), architecture.most_side(configs)
    pixels_each = f"is not a multiple of {factor}, the factor between pixels and latents of {key}"
    for name, size in zip(("size", *("sizes",) * len(family.sizes)), family.allowed_sizes, strict=True):
        if size.width % factor or size.height % factor:
            nearest = " and ".join(map(str, _nearest_sizes(size, factor)))
            raise ConfigError(f"family {family.name}: {name}: {size} {pixels_each}; the nearest sizes are {nearest}")
        if most is not None and max(size) > most:
            too_long = f"has a side of more than {most} pixels, for which {key} has no positions"
            raise ConfigError(f"family {family.name}: {name}: {size} {too_long}; name a smaller size")
    if family.any_size is not None and family.any_size.multiple % factor:
        given = family.any_size.multiple
        raise ConfigError(f"family {family.name}: any_size.multiple: {given} {pixels_each}; write a multiple of it")
    if family.any_size is not None and most is not None and family.any_size.most_side > most:
        given = family.any_size.most_side
        too_long = f"{given} is more than the {most} pixels for which {key} has positions"
        raise ConfigError(f"family {family.name}: any_size.most_side: {too_long}; write at most {most}")


def _nearest_sizes(size: ImageSize, factor: int) -> list[ImageSize]:
    """The sizes below and above whose sides are multiples of ``factor``."""
    below = ImageSize(*(side - side % factor for side in size))
    above = ImageSize(*(-(-side // factor) * factor for side in size))
    return [it for it in (below, above) if it.pixels]


def architecture_of(source: Source, index: Mapping[str, Any]) -> type[Architecture]:
    """The architecture of a pipeline.

    Args:
        index: content of its ``model_index.json``.

    Raises:
        ConfigError: no adapter serves the pipeline's class.
    """
    name = index.get("_class_name")
    if name not in ARCHITECTURES:
        if name in INPAINTING:
            raise source.error(f"the pipeline class is {name}", "name it in inpainting of a variant")
        raise source.error(f"the pipeline class is {name}", f"Weir serves {' and '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def check_single_file(source: Source, name: str, given: Shapes, expected: Shapes) -> None:
    """Checks that a single file holds the tensors of its family's denoiser.

    Raises:
        ConfigError: names the difference.
    """
    if (difference := misfit(given, expected)) is not None:
        raise source.error(
            f"{name} does not fit the denoiser of the family's pipeline: {difference}",
            "the file must hold a UNet of the same architecture with diffusers' names, as save_pretrained writes them; "
            "diffusers' from_single_file reads other names",
        )


# ---------------------------------------------------------------------------------------------------- files


def _lender(family: FamilyConfig, key: str) -> _Checkpoint | None:
    """The family's pipeline, if a variant has its text encoders and its VAE from there.

    Raises:
        ConfigError: it is not a local folder, but the variant's own is: then nothing is known of these parts.
    """
    if not family.variants[key].shares_encoders:
        return None
    source = family_source(family)
    if source.folder is None:
        what = f"{key} shares its encoders, and this is no local folder"
        raise source.error(what, f"give a local folder, or a repository of the hub in {key}.pipeline too")
    return _read_pipeline(source, source.folder, family_file(family), None)


def other_kind(source: Source, architecture: type[Architecture], lender: str) -> ConfigError:
    """The error of a pipeline that shares encoders with one of another class."""
    what = f"it is a {architecture.pipeline_class}, and shares the encoders of a {lender}"
    return source.error(what, "leave shares_encoders out, or use pipelines of one kind")


def _read_pipeline(source: Source, folder: Path, file: Source | None, lender: _Checkpoint | None) -> _Checkpoint:
    """Reads a pipeline's folder.

    Args:
        file: the single file that has the weights; None: they are in the folder.
        lender: has all parts but the denoiser and the scheduler; None: the folder has them.
    """
    index = _read_config(source, folder / "model_index.json", _REMEDY)
    architecture = architecture_of(source, index)
    schedule = _read_config(source, folder / "scheduler" / "scheduler_config.json", _REMEDY)
    configs: dict[str, Mapping[str, Any]] = {"scheduler": schedule}
    shapes: dict[str, Shapes] = {}
    remedy, of_set = "fetch the pipeline again", False
    if lender is not None and lender.architecture is not architecture:
        raise other_kind(source, architecture, lender.architecture.pipeline_class)
    for part in _parts(index):
        if lender is not None and part != architecture.denoiser_part:
            configs[part], shapes[part] = lender.configs.get(part, {}), {}
            continue
        configs[part] = _read_config(source, folder / part / "config.json", remedy)
        if file is not None:
            shapes[part] = {}
            continue
        shapes[part], complete = _read_headers(source, folder / part, remedy)
        of_set |= complete
    if (files := source.file_set) and not of_set and file is None:
        raise source.error(f"no part has {files} files (weights: {files})", "leave weights out, or fetch them")
    missing = {architecture.denoiser_part, "vae", *architecture.text_encoders} - shapes.keys()
    if missing:
        raise source.error(f"model_index.json names no {min(missing)}", remedy)
    if file is None:
        return _Checkpoint(architecture, configs, shapes[architecture.denoiser_part])
    _check_whole_file(file, architecture, configs)
    return _Checkpoint(architecture, configs, None)


def _check_whole_file(source: Source, architecture: type[Architecture], configs: Configs) -> None:
    """Checks a single file with all parts of a pipeline by its header."""
    if source.folder is None or not source.folder.is_file():
        raise source.error("there is no such file", "give the path of a .safetensors file")
    given = _shapes(source, _single_file(source, source.folder, None))
    expected = architecture.single_file_shapes(configs)
    if not expected:
        what = f"a {architecture.pipeline_class} is not loaded from one file"
        raise source.error(what, "leave checkpoint out, and name a pipeline with weights")
    for name, (part, shape) in expected.items():
        if name not in given:
            raise source.error(f"it has no tensor {name}, of the {part} of a {architecture.pipeline_class}", _LAYOUT)
        if given[name] != shape:
            what = f"{name} has the shape {list(given[name])}; the configuration of {part} says {list(shape)}"
            raise source.error(what, "use the configurations of the model that the file was trained from")


def _parts(index: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a pipeline that have weights."""
    for part, kind in index.items():
        if (
            not part.startswith("_")
            and isinstance(kind, list)
            and kind[1] is not None
            and not part.startswith(_WEIGHTLESS)
        ):
            yield part


def _read_denoiser(source: Source, folder: Path) -> Mapping[str, Any]:
    remedy = "give a UNet written by save_pretrained"
    config = _read_config(source, folder / "config.json", remedy)
    _, of_set = _read_headers(source, folder, remedy)
    if (files := source.file_set) and not of_set:
        plain = file_set((it.name for it in folder.iterdir()), None)
        remedy = f"name its file: unet_file: {plain[0]}" if plain else f"fetch its {files} files"
        raise source.error(f"there are no {files} files in {folder} (weights: {files})", remedy)
    return config


def _read_inpainting(family: FamilyConfig, key: str) -> Configs | None:
    """What :func:`check_inpainting` needs of a variant's inpainting pipeline; None without one or on the hub."""
    source = inpainting_source(family, key)
    if source is None or (folder := source.folder) is None:
        return None
    files = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json", "unet": "unet/config.json"}
    own = {part: _read_config(source, folder / file, _REMEDY) for part, file in files.items()}
    _, of_set = _read_headers(source, folder / "unet", _REMEDY)
    if (files_of := source.file_set) and not of_set:
        raise source.error(
            f"its unet has no {files_of} files (weights: {files_of})", f"fetch them, or set {key}.weights"
        )
    return own


def _read_vae(family: FamilyConfig) -> Configs:
    """The configuration of the family's own VAE as that of the part ``vae``; empty without one or on the hub."""
    source = vae_source(family)
    if source is None or source.folder is None:
        return {}
    config = _read_config(source, source.folder / "config.json", _VAE_REMEDY)
    check_vae(source, str(config.get("_class_name")))
    _read_headers(source, source.folder, _VAE_REMEDY)
    return {"vae": config}


def check_vae(source: Source, kind: str) -> None:
    """Checks the class of a VAE that replaces that of a pipeline.

    Raises:
        ConfigError: it is another one than these architectures have.
    """
    if kind != _VAE:
        raise source.error(f"its class is {kind}", f"use a VAE of the class {_VAE}")


def _check_inversion(source: Source, architecture: type[Architecture], configs: Configs) -> None:
    """Checks the file of a textual inversion by its header."""
    if source.folder is None or not source.folder.is_file():
        raise source.error("there is no such file", "give the path of a .safetensors file")
    check_inversion(source, architecture, configs, _shapes(source, _single_file(source, source.folder, None)))


def check_inversion(
    source: Source, architecture: type[Architecture], configs: Configs, given: Shapes
) -> dict[str, str]:
    """Finds the tensors of a textual inversion for each text encoder.

    Args:
        given: the shapes in its file.

    Returns:
        Names of tensors by text encoder.

    Raises:
        ConfigError: a tensor is missing or of another width.
    """
    found: dict[str, str] = {}
    widths = architecture.inversion_widths(configs)
    if not widths:
        raise source.error(f"a {architecture.pipeline_class} has no textual inversions", "leave textual_inversions out")
    for encoder, (_, name, width) in widths.items():
        wanted = name or (next(iter(given)) if len(given) == 1 else None)
        if wanted is None or wanted not in given:
            there = ", ".join(sorted(given)) or "nothing"
            raise source.error(f"it has {there}, and no {name or 'single tensor'} for {encoder}", _INVERSION)
        if given[wanted][-1:] != (width,):
            raise source.error(
                f"{wanted} has the shape {list(given[wanted])}; {encoder} has the width {width}", _INVERSION
            )
        found[encoder] = wanted
    return found


def _single_file(source: Source, folder: Path, name: str | None) -> Path:
    file = folder if name is None else folder / name
    if file.suffix != ".safetensors":
        raise source.error(f"{file.name} is not a .safetensors file", "other formats can run code when loaded")
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in folder.glob("*.safetensors"))) or "no .safetensors file"
        raise source.error(f"there is no file {file.name}", f"unet_file must name a file in it; found: {there}")
    return file


def _read_headers(source: Source, folder: Path, remedy: str) -> tuple[Shapes, bool]:
    """The shapes of the tensors that are loaded from a folder, and whether their files are of the source's set."""
    names = [file.name for file in folder.glob("*.safetensors")]
    of_set = file_set(names, source.file_set)
    if not (loaded := of_set or file_set(names, None)):
        if names:
            raise source.error(f"{folder} has only {', '.join(sorted(names))}", "name the file set in weights")
        raise source.error(f"there is no .safetensors file in {folder}", remedy)
    return {name: shape for file in loaded for name, shape in _shapes(source, folder / file).items()}, bool(of_set)


def _shapes(source: Source, file: Path) -> Shapes:
    try:
        return read_shapes(file)
    except (OSError, SafetensorError) as error:
        raise source.error(f"{file} is damaged: {first_lines(error)}", "fetch or write it again") from None


def _read_config(source: Source, file: Path, remedy: str) -> dict[str, Any]:
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise source.error(f"there is no file {file}", remedy) from None
    except (OSError, ValueError) as error:
        raise source.error(f"{file} cannot be read: {first_lines(error)}", remedy) from None
    if not isinstance(config, dict):
        raise source.error(f"{file} is no configuration", remedy)
    return config
