"""Generate one image in this process: ``weir generate``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from cli.option_groups import grouped
from cli.terminal import FamilyOption, JsonOption, console, error_exit, note, print_json, print_line
from weir.adapters import MOST_SCALE, AdapterUse
from weir.assets import CACHE_PROFILE, FAMILY
from weir.config import CacheConfig, FamilyConfig, LimitsConfig, load_family
from weir.core import Edit, ImageSize, Overrides
from weir.errors import ConfigError, InvalidRequest
from weir.files import check_place, file_format, written_whole
from weir.prompts import PromptSyntax, check_weights

if TYPE_CHECKING:
    from load_balancer.runner.generation_request import ImageFormat
    from workers.generate import Generated, LocalRequest

#: Formats of the files that can be written, by extension.
IMAGE_FORMATS: dict[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
#: Quality of the formats that lose some, as of the API's images.
QUALITY = 100
_STRENGTHS = "0.75, and 1 with a mask"


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """Options of the image to generate."""

    seed: Annotated[int | None, typer.Option(min=-1, max=2**64 - 1, help="Otherwise random, and printed.")] = None
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Confidence below which the next variant generates the image again.")
    ] = 0.5
    variant: Annotated[
        str | None, typer.Option(help="Force one variant of the family instead of the cascade, e.g. light.")
    ] = None
    negative_prompt: Annotated[str, typer.Option(help="What the image should not show.")] = ""
    weighted: Annotated[bool, typer.Option("--weighted", help="(text:1.3) gives a part of the prompt a weight.")] = (
        False
    )
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps of the last variant.")] = None
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale of the last variant.")] = None
    sampler: Annotated[
        str | None, typer.Option(help="Sampler of the last variant, one of the family's.", show_default="its own")
    ] = None
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, a size that the family allows.", show_default="the family's own")
    ] = None
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter of the family, with its scale: NAME or NAME:SCALE; may be repeated."),
    ] = None

    def request(self, prompt: str, family: FamilyConfig) -> LocalRequest:
        """The request for an image from noise.

        Raises:
            ConfigError, InvalidRequest: the family has no such variant, size, adapter or sampler, or the prompt has a
                weight that is out of range.
        """
        from workers.generate import LocalRequest

        if self.variant is not None and self.variant not in family.keys:
            raise ConfigError(f"--variant is {self.variant!r}; {family.name} has {', '.join(family.keys)}")
        size = None if self.size is None else _size(self.size)
        syntax: PromptSyntax = "weighted" if self.weighted else "plain"
        for param, text in (("prompt", prompt), ("negative_prompt", self.negative_prompt)):
            check_weights(param, text, syntax)
        adapters = _adapters(self.adapter or (), family)
        sampler = next((it for it in family.allowed_samplers if it == self.sampler), None)
        if self.sampler is not None and sampler is None:
            known = ", ".join(family.allowed_samplers)
            raise ConfigError(f"--sampler is {self.sampler!r}; {family.name} has {known}")
        return LocalRequest(
            prompt,
            seed=random.randrange(2**32) if self.seed in (None, -1) else self.seed,
            threshold=self.threshold,
            variant=self.variant,
            size=size,
            negative_prompt=self.negative_prompt,
            prompt_syntax=syntax,
            overrides=Overrides(self.steps, self.guidance, sampler),
            adapters=adapters,
        )


@dataclass(frozen=True, slots=True)
class EditOptions:
    """Options of an edit."""

    image: Annotated[Path | None, typer.Option(help="Picture to edit: PNG, JPEG or WebP.")] = None
    mask: Annotated[
        Path | None, typer.Option(help="PNG of the picture's size; only what is fully transparent changes.")
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(help="Share of the steps that run on the picture, above 0, at most 1.", show_default=_STRENGTHS),
    ] = None


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Options of the cache of earlier runs."""

    cache: Annotated[Path | None, typer.Option(help="File of earlier runs to resume from; this run is added.")] = None
    selector: Annotated[
        str | None, typer.Option(help="Thresholds: a published name, or a cache profile.", show_default="the family's")
    ] = None


@grouped
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    out: Annotated[Path, typer.Option(help="Image to write: .png, .jpg, .jpeg or .webp.")] = Path("image.png"),
    family: FamilyOption = FAMILY,
    *,
    wanted: ImageOptions,
    editing: EditOptions,
    caching: CacheOptions,
    as_json: JsonOption = False,
) -> None:
    """Generate one image in this process, without a cluster.

    Example: weir generate "a red circle" --out a.png
    """
    from cache.local import LocalCache
    from load_balancer.http.image_encoding import reencoded
    from workers.generate import generate as generated
    from workers.models.judges import family_judge

    with error_exit():
        if not prompt.strip():
            raise ConfigError("the prompt is empty; describe the image")
        image_format = IMAGE_FORMATS[file_format(out, tuple(IMAGE_FORMATS))]
        check_place(out)
        config = load_family(family)
        request = _edited(wanted.request(prompt, config), editing, config)
        with console.status("generating"):
            local_cache = None
            if caching.cache is not None:
                thresholds = caching.selector or (str(CACHE_PROFILE) if family == FAMILY else "nirvana")
                cache_config = CacheConfig(mode="read-write", selector=thresholds)
                local_cache = LocalCache(cache_config, config, caching.cache, family_judge)
            result = generated(config, request, threads=1, cache=local_cache)
            if local_cache is not None:
                local_cache.save()
        with written_whole(out) as draft:
            png = image_format == "png"
            draft.write_bytes(result.image if png else reencoded(result.image, image_format, QUALITY))
    if as_json:
        print_json({k: v for k, v in asdict(result).items() if k != "image"} | {"file": str(out)})
    else:
        _print_result(result, out, edited=request.edit is not None)


def _print_result(result: Generated, out: Path, *, edited: bool) -> None:
    verdicts = "".join(f", confidence in {key} {value:.2f}" for key, value in result.confidences.items())
    resumed = f" resumed at step {result.resumed_at} of an earlier run" if result.resumed_at and not edited else ""
    print_line(f"{out}: {result.model}, {result.steps} steps{resumed}, seed {result.seed}{verdicts}")
    for name, unused in (("", result.unused_tokens), ("negative ", result.unused_negative_tokens)):
        if unused:
            note(f"the {name}prompt is too long: its last {unused} tokens were not used")


def _edited(request: LocalRequest, editing: EditOptions, config: FamilyConfig) -> LocalRequest:
    """The request with the pictures in files as its edit, and with their size; without an image the request itself.

    Raises:
        ConfigError: an option or a file is not one of an edit.
    """
    from load_balancer.http.edit_pictures import read_pictures
    from load_balancer.http.schema import default_strength

    image, mask, strength = editing.image, editing.mask, editing.strength
    if image is None:
        if mask is not None or strength is not None:
            raise ConfigError(f"{'--strength' if mask is None else '--mask'} needs --image, the picture to edit")
        return request
    if strength is not None and not 0 < strength <= 1:
        raise ConfigError(f"--strength is {strength:g}; accepted: a number above 0, at most 1")
    files = {"image": image, "mask": mask}
    with ExitStack() as opened:
        sources = {name: None if path is None else opened.enter_context(_opened(path)) for name, path in files.items()}
        assert sources["image"] is not None
        try:
            pictures = read_pictures(
                sources["image"],
                sources["mask"],
                lambda has: request.size or config.allowed_sizes.for_picture(has),
                LimitsConfig().image_pixels,
            )
        except InvalidRequest as error:
            raise ConfigError(f"--{error.param} {files[error.param or 'image']}: {error.message}") from None
    edit = Edit(pictures.image, pictures.mask, strength or default_strength(pictures))
    return replace(request, edit=edit, size=pictures.size)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; name an image file") from None


def _adapters(given: Sequence[str], family: FamilyConfig) -> tuple[AdapterUse, ...]:
    """The adapters that the command line names.

    Raises:
        ConfigError: there is no such adapter, or a scale is out of range.
    """
    weights, scales = family.adapter_weights, dict[str, float]()
    for text in given:
        name, _, scale = text.partition(":")
        if name not in weights:
            there = ", ".join(weights) or "no adapters"
            raise ConfigError(f"--adapter is {text!r}; {family.name} has {there}")
        try:
            scales[name] = float(scale or 1)
        except ValueError:
            raise ConfigError(f"--adapter is {text!r}; write NAME:SCALE, such as {name}:0.7") from None
        if not abs(scales[name]) <= MOST_SCALE:
            raise ConfigError(f"--adapter is {text!r}; its scale lies in {-MOST_SCALE:g}…{MOST_SCALE:g}")
    return tuple(AdapterUse(name, scales[name], weights[name]) for name in sorted(scales))


def _size(given: str) -> ImageSize:
    try:
        return ImageSize.of(given)
    except ValueError as error:
        raise ConfigError(f"--size: {error}") from None
