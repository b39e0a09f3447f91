"""Reads prompts with the CLIP text model that a family has anyway."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from weir.errors import ConfigError


class TextReader:
    """Embeds prompts: the hidden states of a CLIP text model's last two layers at the end of the prompt.

    Args:
        model: a ``CLIPTextModel``, or the text model of a CLIP.
    """

    def __init__(self, model: Any, tokenizer: CLIPTokenizer, device: str = "cpu"):
        self.model = model.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device

    @classmethod
    def load(cls, pipeline: str, revision: str | None = None, device: str = "cpu") -> TextReader:
        """Loads the first text encoder of a pipeline.

        Raises:
            ConfigError: it is not a CLIP.
        """
        try:
            model = CLIPTextModel.from_pretrained(
                pipeline, subfolder="text_encoder", revision=revision, dtype=torch.float32, use_safetensors=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(pipeline, subfolder="tokenizer", revision=revision)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{pipeline}: its text encoder is not a CLIP ({error})") from None
        return cls(getattr(model, "text_model", model), tokenizer, device)

    @torch.no_grad()
    def read(self, prompts: list[str]) -> torch.Tensor:
        """Embeddings of prompts, [B, 2 · width]. Prompts are cut at the encoder's window."""
        batch = self._tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(self._device)
        out = self.model(batch.input_ids, output_hidden_states=True)
        end = (batch.input_ids == self._tokenizer.eos_token_id).int().argmax(-1)  # the first: it may also pad
        rows = torch.arange(len(prompts), device=end.device)
        return torch.cat([out.hidden_states[-2][rows, end], out.last_hidden_state[rows, end]], -1).float()
