"""Stable Diffusion 1 and 2, and models of their architecture: a UNet that attends to one text encoder's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from workers.engine.scheduler_settings import unsupported
from workers.models.architectures.architecture import Architecture, Configs, Mismatch, Pipeline, Text
from workers.models.architectures.prompt_windows import Encoded, Window, Windows, split_tokens, with_weights

if TYPE_CHECKING:
    import torch

    from weir.core import ImageSize
    from weir.prompts import Prompt
    from weir.samplers import Scheduler
    from workers.engine.scheduling import Recipe

_TEXT_TO_IMAGE = "use the UNet of a text-to-image model of this architecture"
_INPAINTING = "it is an inpainting UNet: name its pipeline in inpainting of the variant, and a text-to-image model here"
#: Settings of UNets with conditions that these pipelines do not compute.
_UNCONDITIONED = {"class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None}


_TEXT = ("encoder_hidden_states",)


class StableDiffusion(Architecture):
    """Stable Diffusion 1 and 2."""

    pipeline_class = "StableDiffusionPipeline"
    inpainting_class = "StableDiffusionInpaintPipeline"
    denoiser_part = "unet"
    loading: ClassVar[Mapping[str, Any]] = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    #: Of each text encoder.
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    #: Of each text encoder, the name of its position embedding in files of the original repositories.
    single_file_encoders: ClassVar[tuple[str, ...]] = (
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
    )
    #: Of each text encoder, the name of its tensor in a file of a textual inversion.
    inversion_tensors: ClassVar[tuple[str | None, ...]] = (None,)
    #: The UNet's setting for what it is conditioned on besides the prompt's tokens and the timestep.
    addition_embed_type: ClassVar[str | None] = None

    # ----------------------------------------------------------------------------------------- checkpoints

    @classmethod
    def mismatches(cls, configs: Configs, samplers: Sequence[Scheduler]) -> Iterator[Mismatch]:
        for name in samplers:
            for what, remedy in unsupported(name, configs["scheduler"]):
                yield Mismatch("scheduler", what, remedy)
        unet, channels = configs["unet"], configs["vae"].get("latent_channels", 4)
        for key in ("in_channels", "out_channels"):
            if (given := unet.get(key, 4)) != channels:
                inpaints = key == "in_channels" and given == 2 * channels + 1
                yield Mismatch(
                    "unet",
                    f"{key} is {given}, and the VAE's latents have {channels}",
                    _INPAINTING if inpaints else _TEXT_TO_IMAGE,
                )
        width = sum(configs[encoder].get("hidden_size", 0) for encoder in cls.text_encoders)
        given = unet.get("cross_attention_dim", 1280)
        if {*(given if isinstance(given, list | tuple) else [given])} != {width}:
            encoders = " and ".join(cls.text_encoders)
            yield Mismatch("unet", f"cross_attention_dim is {given}, and {encoders} give {width}", _TEXT_TO_IMAGE)
        for key, needed in {"addition_embed_type": cls.addition_embed_type, **_UNCONDITIONED}.items():
            if (given := unet.get(key)) != needed:
                yield Mismatch("unet", f"{key} is {given}; {cls.pipeline_class} needs {needed}", _TEXT_TO_IMAGE)

    @classmethod
    def single_file_shapes(cls, configs: Configs) -> dict[str, tuple[str, tuple[int, ...]]]:
        unet, vae = configs["unet"], configs["vae"]
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "model.diffusion_model.input_blocks.0.0.weight": (
                "unet",
                (unet["block_out_channels"][0], unet.get("in_channels", 4), 3, 3),
            ),
            "first_stage_model.decoder.conv_in.weight": (
                "vae",
                (vae["block_out_channels"][-1], vae.get("latent_channels", 4), 3, 3),
            ),
        }
        for encoder, name in zip(cls.text_encoders, cls.single_file_encoders, strict=True):
            config = configs[encoder]
            shapes[name] = (encoder, (config.get("max_position_embeddings", 77), config.get("hidden_size", 512)))
        return shapes

    @classmethod
    def inversion_widths(cls, configs: Configs) -> dict[str, tuple[str, str | None, int]]:
        both = zip(cls.text_encoders, cls.tokenizers, cls.inversion_tensors, strict=True)
        return {encoder: (words, name, configs[encoder].get("hidden_size", 0)) for encoder, words, name in both}

    @classmethod
    def factor(cls, configs: Configs) -> int:
        return 2 ** (len(configs["vae"].get("block_out_channels", [0])) - 1)

    @classmethod
    def assemble(cls, base: Pipeline, **parts: Any) -> Pipeline:
        return type(base)(**{**base.components, **parts}, requires_safety_checker=False)

    # ---------------------------------------------------------------------------------------------- models

    @property
    def text_key(self) -> object:
        return id(self.pipeline.text_encoder)

    @property
    def _embeds_guidance(self) -> bool:
        """Whether the UNet is conditioned on the guidance scale."""
        return self.pipeline.unet.config.time_cond_proj_dim is not None

    def guidance_factor(self, guidance: float) -> float | None:
        return guidance if guidance > 1 and not self._embeds_guidance else None

    @property
    def zeros_for_no_negative(self) -> bool:
        return False

    def encode(self, prompts: Sequence[Prompt]) -> list[Text]:
        import torch  # not at the top: an adapter is imported to check configurations

        windows = [self._windows(prompt) for prompt in prompts]
        # by text encoder, by prompt
        encoded = [
            self._encode(number, prompts, [it.of_encoder[number] for it in windows])
            for number in range(len(self.text_encoders))
        ]
        texts = []
        for it, *parts in zip(windows, *encoded, strict=True):
            tensors = {"encoder_hidden_states": torch.cat([part.states for part in parts], -1).flatten(0, 1)}
            if parts[-1].pooled is not None:  # the pooled prompt is that of the last encoder, which projects it
                tensors["text_embeds"] = parts[-1].pooled
            texts.append(Text(tensors, it.unused))
        return texts

    def of_one_length(self, prompt: Text, negative: Text, empty: Callable[[], Text]) -> tuple[Text, Text]:
        lengths = [len(it.tensors["encoder_hidden_states"]) for it in (prompt, negative)]
        if lengths[0] == lengths[1]:
            return prompt, negative
        return _extended(prompt, empty(), max(lengths)), _extended(negative, empty(), max(lengths))

    def latent_shape(self, size: ImageSize) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.unet.config.out_channels, size.height // factor, size.width // factor

    def conditions(self, text: Text, recipe: Recipe) -> dict[str, torch.Tensor]:
        conditions = dict(text.tensors)
        if self._embeds_guidance:
            conditions["timestep_cond"] = self._guidance_embedding(recipe.guidance)
        return conditions

    def stack(self, conditions: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        import torch  # not at the top: an adapter is imported to check configurations

        texts = [row["encoder_hidden_states"] for row in conditions]
        lengths = [len(it) for it in texts]
        stacked = {name: torch.stack([row[name] for row in conditions]) for name in conditions[0] if name not in _TEXT}
        stacked["encoder_hidden_states"] = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        if len({*lengths}) > 1:
            positions, ends = torch.arange(max(lengths)), torch.tensor(lengths)[:, None]
            stacked["encoder_attention_mask"] = (positions < ends).to(texts[0].device)
        return stacked

    def denoise(
        self, denoiser: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Mapping[str, Any]
    ) -> torch.Tensor:
        return denoiser(latents, timesteps, return_dict=False, **conditions)[0]

    def scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        return encoded * self.vae.config.scaling_factor

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / self.vae.config.scaling_factor

    def _windows(self, prompt: Prompt) -> Windows:
        """Splits a prompt's tokens into windows, of the same number for each text encoder."""
        split = []
        for name in self.tokenizers:
            tokenizer = getattr(self.pipeline, name)
            # names of textual inversions become their tokens
            parts = [part._replace(text=self.pipeline.maybe_convert_prompt(part.text, tokenizer)) for part in prompt]
            split.append(split_tokens(tokenizer, parts))
        count = max(len(windows) for windows, _ in split)
        padded = [windows + [Window([], [])] * (count - len(windows)) for windows, _ in split]
        return Windows(padded, max(unused for _, unused in split))

    def _encode(self, number: int, prompts: Sequence[Prompt], windows: Sequence[Sequence[Window]]) -> list[Encoded]:
        """Encodes prompts with one text encoder, all of their windows together.

        Args:
            number: of the text encoder.
            windows: those of each prompt.
        """
        weighted = any(part.weight != 1 for prompt in prompts for part in prompt)
        rows = [window for it in windows for window in it] + [Window([], [])] * weighted
        states, pooled = self._encode_windows(number, rows)
        encoded, first = [], 0
        for it in windows:
            encoded.append(Encoded(states[first : first + len(it)], None if pooled is None else pooled[first]))
            first += len(it)
        if not weighted:
            return encoded

        def without(rows: list[Window], part: int) -> torch.Tensor:
            return self._encode_windows(number, rows, without=part)[0]

        return [
            Encoded(with_weights(it.states, states[-1], prompt, own, without), it.pooled)
            for it, prompt, own in zip(encoded, prompts, windows, strict=True)
        ]

    def _encode_windows(
        self, number: int, windows: Sequence[Window], without: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encodes W windows of tokens.

        Args:
            number: of the text encoder.
            without: number of the part of the prompt whose tokens the encoder does not see.

        Returns:
            The states of the tokens [W, T, D], and the pooled windows [W, P] where the denoiser needs them.
        """
        return self._encoder_output(number, windows, without)[0], None

    def _encoder_output(self, number: int, windows: Sequence[Window], without: int | None, **how: Any) -> Any:
        """The output of a text encoder for windows of tokens, each between the marks of begin and end, and padded."""
        import torch  # not at the top: an adapter is imported to check configurations

        model, words = (getattr(self.pipeline, names[number]) for names in (self.text_encoders, self.tokenizers))
        ids = torch.full((len(windows), words.model_max_length), words.pad_token_id)
        masked = getattr(model.config, "use_attention_mask", False)
        mask = torch.zeros_like(ids) if masked else torch.ones_like(ids)
        for i, window in enumerate(windows):
            row = [words.bos_token_id, *window.tokens, words.eos_token_id]
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
            for place, part in enumerate(window.parts, 1):
                if part == without:
                    mask[i, place] = 0
        if masked or without is not None:
            how["attention_mask"] = mask.to(self.device)
        return model(ids.to(self.device), **how)

    def _guidance_embedding(self, guidance: float) -> torch.Tensor:
        """The condition of a UNet that was distilled with guidance (Meng et al. 2023), [D]."""
        import torch  # not at the top: an adapter is imported to check configurations

        unet = self.pipeline.unet
        width = unet.config.time_cond_proj_dim
        embedded = self.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), embedding_dim=width)
        return embedded[0].to(self.device, unet.dtype)


def _extended(text: Text, empty: Text, length: int) -> Text:
    """A text extended by an empty one to ``length`` tokens, a multiple of the empty text's."""
    import torch  # not at the top: an adapter is imported to check configurations

    states, more = text.tensors["encoder_hidden_states"], empty.tensors["encoder_hidden_states"]
    count = (length - len(states)) // len(more)
    return Text({**text.tensors, "encoder_hidden_states": torch.cat([states, *[more] * count])}, text.unused_tokens)
