"""What the diffusion transformers have in common: flow matching, patches of latents, and a shifted VAE."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from workers.engine.scheduler_settings import Spacing, unsupported
from workers.models.architectures.architecture import Architecture, Configs, Mismatch, Pipeline, Text

if TYPE_CHECKING:
    import torch

    from weir.core import ImageSize
    from weir.prompts import Prompt
    from weir.samplers import Scheduler
    from workers.engine.scheduling import Recipe

#: Side of a patch, positions of the latent.
PATCH = 2


class Width(NamedTuple):
    """A setting of the transformer that another part of the pipeline determines.

    Attributes:
        needed: the value; None: nothing is known of it.
        why: what it comes from.
    """

    key: str
    needed: object
    why: str


class DiffusionTransformer(Architecture):
    """A transformer over patches of the latent, trained by flow matching.

    Attributes:
        linear_levels: whether the pipeline passes the scheduler noise levels that fall evenly.
    """

    denoiser_part = "transformer"
    loading: ClassVar[Mapping[str, Any]] = {}
    weighs_prompts = False
    linear_levels: ClassVar[bool] = True

    # ----------------------------------------------------------------------------------------- checkpoints

    @classmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        for name in samplers:
            for what, remedy in unsupported(name, configs["scheduler"]):
                yield Mismatch("scheduler", what, remedy)
        for key, needed, why in cls.widths(configs):
            given = configs[cls.denoiser_part].get(key)
            if needed is not None and given not in (None, needed):
                what = f"{key} is {given}, and {why} needs {needed}"
                yield Mismatch(cls.denoiser_part, what, "use the transformer of a text-to-image model of this kind")

    @classmethod
    @abstractmethod
    def widths(cls, configs: Configs) -> Iterator[Width]:
        """The transformer's settings that the other parts determine."""

    @classmethod
    def single_file_shapes(cls, configs: Configs) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {}

    @classmethod
    def inversion_widths(cls, configs: Configs) -> dict[str, tuple[str, str | None, int]]:
        return {}

    @classmethod
    def factor(cls, configs: Configs) -> int:
        return PATCH * 2 ** (len(configs["vae"].get("block_out_channels", [0])) - 1)

    @classmethod
    def assemble(cls, base: Pipeline, **parts: Any) -> Pipeline:
        return type(base)(**{**base.components, **parts})

    # ---------------------------------------------------------------------------------------------- models

    @property
    def text_key(self) -> object:
        return tuple(id(getattr(self.pipeline, part)) for part in self.text_encoders)

    @property
    def zeros_for_no_negative(self) -> bool:
        return False

    def spacing(self, size: ImageSize) -> Spacing:
        """The shift for the number of patches of an image, as diffusers' pipelines compute it (``calculate_shift``)."""
        config = self.pipeline.scheduler.config
        if not config.use_dynamic_shifting:
            return Spacing(linear=self.linear_levels)
        _, height, width = self.latent_shape(size)
        patches = (height // PATCH) * (width // PATCH)
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return Spacing(self.linear_levels, config.base_shift + slope * (patches - config.base_image_seq_len))

    def of_one_length(self, prompt: Text, negative: Text, empty: Callable[[], Text]) -> tuple[Text, Text]:
        return prompt, negative

    def latent_shape(self, size: ImageSize) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.vae.config.latent_channels, size.height // factor, size.width // factor

    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        return dict(text.tensors)

    def stack(self, conditions: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        import torch  # not at the top: an adapter is imported to check configurations

        return {name: torch.stack([row[name] for row in conditions]) for name in conditions[0]}

    def scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        return (encoded - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)


def words(prompt: Prompt) -> str:
    """The text of a prompt without weights."""
    return "".join(part.text for part in prompt)


def tokens_beyond(tokenizer: Any, text: str, limit: int) -> int:
    """Number of tokens of a text that a window of ``limit`` tokens, marks included, leaves out."""
    return max(0, len(tokenizer(text).input_ids) - limit)
