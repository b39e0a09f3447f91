"""What the engine needs of an architecture of diffusion models.

An architecture is a class of diffusers pipelines, such as Stable Diffusion XL. Its adapter is the only code that knows
the pipeline's parts and how they are called. Importing an adapter imports neither torch nor diffusers, because
checkpoints are checked by their configurations before anything is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from weir.errors import InvalidRequest
from workers.engine.scheduler_settings import OWN_SPACING, Spacing

if TYPE_CHECKING:
    import torch

    from weir.core import ImageSize
    from weir.prompts import Prompt
    from weir.samplers import Scheduler
    from workers.engine.scheduling import Recipe

#: A diffusers pipeline, whose attributes diffusers creates at run time.
Pipeline: TypeAlias = Any
#: Configuration of each part of a checkpoint, such as ``unet``; that of ``scheduler`` included.
Configs: TypeAlias = Mapping[str, Mapping[str, Any]]


class Mismatch(NamedTuple):
    """Why a checkpoint cannot be served.

    Attributes:
        part: the part of the pipeline that is wrong, e.g. ``unet``.
        what: what is wrong with it; names the key of its configuration.
        remedy: what to use instead.
    """

    part: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Text:
    """An encoded prompt.

    Attributes:
        tensors: what the denoiser is conditioned on, by name, without a batch dimension.
        unused_tokens: number of tokens at the end of the prompt that were left out, because it is too long.
    """

    tensors: Mapping[str, torch.Tensor]
    unused_tokens: int

    @property
    def size_bytes(self) -> int:
        """Memory of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def zeros(self) -> Text:
        """The encoding of nothing: zeros of the same shapes."""
        return Text({name: tensor.new_zeros(tensor.shape) for name, tensor in self.tensors.items()}, 0)


class Architecture(ABC):
    """The models of one pipeline, as the engine uses them. The engine calls it under ``torch.inference_mode``.

    Latents are [C, H/f, W/f] outside of the adapter; an architecture that packs them does so in :meth:`denoise`.

    Args:
        pipeline: a pipeline of :attr:`pipeline_class`.

    Attributes:
        pipeline_class: name of diffusers' pipeline class (``_class_name`` in ``model_index.json``).
        inpainting_class: name of diffusers' class of pipelines whose denoiser may inpaint; None: Weir uses none.
        denoiser_part: part of the pipeline that a variant may replace.
        text_encoders: parts of the pipeline that encode prompts.
        loading: arguments of ``from_pretrained`` that leave out parts that Weir does not use or that change images.
        weighs_prompts: whether parts of a prompt may have weights.
        takes_adapters: whether LoRA adapters can be applied: the rows of a call are then those of every layer's inputs.
        has_negative_prompts: whether there is a guidance scale at which a negative prompt has an effect.
    """

    pipeline_class: ClassVar[str]
    inpainting_class: ClassVar[str | None] = None
    denoiser_part: ClassVar[str]
    text_encoders: ClassVar[tuple[str, ...]]
    loading: ClassVar[Mapping[str, Any]]
    weighs_prompts: ClassVar[bool] = True
    takes_adapters: ClassVar[bool] = True
    has_negative_prompts: ClassVar[bool] = True

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    # ----------------------------------------------------------------------------------------- checkpoints

    @classmethod
    @abstractmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        """What keeps a checkpoint with these configurations from being served with these samplers."""

    @classmethod
    @abstractmethod
    def single_file_shapes(cls, configs: Configs) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Parts of the pipeline and shapes of some tensors, by their names in files of the original repositories.

        Empty: a whole model in one file is not served.
        """

    @classmethod
    @abstractmethod
    def inversion_widths(cls, configs: Configs) -> dict[str, tuple[str, str | None, int]]:
        """The tensors of a textual inversion's file.

        Returns:
            By text encoder: its tokenizer, the name of its tensor (None: the only one), and the tensor's width. Empty:
            the architecture has no textual inversions.
        """

    @classmethod
    @abstractmethod
    def factor(cls, configs: Configs) -> int:
        """Number of pixels of which the sides of images are multiples: those of a position of the latent, or of a patch
        of positions."""

    @classmethod
    def most_side(cls, configs: Configs) -> int | None:
        """Longest side of an image for whose positions the denoiser has encodings, pixels; None: any."""
        return None

    @classmethod
    @abstractmethod
    def assemble(cls, base: Pipeline, **parts: Any) -> Pipeline:
        """A pipeline with the base's settings and parts, except for the given ones."""

    # ---------------------------------------------------------------------------------------------- models

    def part(self, name: str) -> Any:
        """The module that is a part of the pipeline."""
        return getattr(self.pipeline, name)

    @property
    def denoiser(self) -> Any:
        """The denoiser's module."""
        return self.part(self.denoiser_part)

    @property
    def vae(self) -> Any:
        """The module that decodes latents."""
        return self.pipeline.vae

    @property
    def device(self) -> torch.device:
        """The device that the models are on."""
        return self.pipeline.device

    @property
    @abstractmethod
    def text_key(self) -> object:
        """Identifies the text encoders: models of equal keys encode a prompt equally."""

    @abstractmethod
    def guidance_factor(self, guidance: float) -> float | None:
        """The factor s of classifier-free guidance, negative + s · (prompt − negative), at a guidance scale.

        Returns:
            None if there is none: then a call has no row for a negative prompt.
        """

    @property
    @abstractmethod
    def zeros_for_no_negative(self) -> bool:
        """Whether an empty negative prompt is :meth:`Text.zeros`, and not the encoding of an empty text."""

    def spacing(self, size: ImageSize) -> Spacing:
        """How the pipeline spaces the noise levels of an image of a size."""
        return OWN_SPACING

    def check_prompts(self, prompt: Prompt, negative: Prompt) -> None:
        """Checks that the models can use everything that prompts have.

        Raises:
            InvalidRequest: names the field and the remedy.
        """
        name = type(self).__name__
        for field, parts in (("prompt", prompt), ("negative_prompt", negative)):
            if not self.weighs_prompts and any(part.weight != 1 for part in parts):
                raise InvalidRequest(f"{field} has weights, which {name} has no use for; write it without", param=field)
        if not self.has_negative_prompts and any(part.text for part in negative):
            what = f"negative_prompt has no effect in {name}, whose guidance needs none; leave it out"
            raise InvalidRequest(what, param="negative_prompt")

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[Text]:
        """Encodes prompts together."""

    @abstractmethod
    def of_one_length(self, prompt: Text, negative: Text, empty: Callable[[], Text]) -> tuple[Text, Text]:
        """A prompt and its negative prompt, the shorter one extended by the encoding of an empty text.

        Args:
            empty: encodes the empty text, if it is needed.
        """

    @abstractmethod
    def latent_shape(self, size: ImageSize) -> tuple[int, int, int]:
        """Shape [C, H/f, W/f] of the latent of an image."""

    @abstractmethod
    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        """Everything that the denoiser is conditioned on for one image, by name, without a batch dimension."""

    @abstractmethod
    def stack(self, conditions: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """The conditions of several images as batches, of which each row has the same effect as alone.

        Returns:
            What :meth:`denoise` takes; of no meaning elsewhere.
        """

    @abstractmethod
    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        """The denoiser's output for a batch.

        Args:
            denoiser: the module :attr:`denoiser`, or its compiled form.
            latents: scaled latents [B, C, H/f, W/f] in the denoiser's precision; of an inpainting UNet with the C + 1
                channels of :attr:`workers.models.edits.Unchanged.channels` behind them.
            timesteps: [B].
            conditions: those of the batch's images, stacked.
        """

    def encode_image(self, image: torch.Tensor, noises: torch.Generator) -> torch.Tensor:
        """Encodes an image [3, H, W] in −1…1 to a finished latent [C, H/f, W/f], float32.

        Args:
            noises: gives the noise of the VAE's distribution.
        """
        import torch  # not at the top: an adapter is imported to check configurations

        encoded = self.vae.encode(image[None].to(self.vae.dtype))
        if not hasattr(encoded, "latent_dist"):  # of a VAE without a distribution, such as the tiny ones
            return self.scaled(encoded.latents)[0].float()
        mean, deviation = encoded.latent_dist.mean, encoded.latent_dist.std
        noise = torch.randn(mean.shape, generator=noises).to(mean)
        return self.scaled(mean + deviation * noise)[0].float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes finished latents [B, C, H/f, W/f] to images [B, 3, H, W], float32, about −1…1."""
        return self.vae.decode(self.unscaled(latents.to(self.vae.dtype)), return_dict=False)[0].float()

    @abstractmethod
    def scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        """What the VAE encodes, on the scale of latents."""

    @abstractmethod
    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """What the VAE decodes; the inverse of :meth:`scaled`."""
