"""Encoders of prompts as unit vectors: the family's CLIP text encoder, any text model of transformers, or hashed words.

The version of an encoder is a digest of its weights and its tokenizer. It is part of every key, so vectors of two
encoders are never compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.own_code import is_own, made

_BATCH = 64
#: Largest number of tokens of a prompt, for models without a limit of their own.
_LENGTH = 512


class Encoder(Protocol):
    """What the cache needs of an encoder.

    Attributes:
        version: changes whenever the vector of a prompt may change.
        dim: width of the vectors.
    """

    version: str
    dim: int

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [B, dim]. A prompt's vector does not depend on its batch (to numerical noise)."""
        ...


class TextEncoder:
    """A text model of transformers. CLIP: its projected (or pooled) output; others: the mean of their last layer.

    encoder = TextEncoder.load("openai/clip-vit-large-patch14")
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, device: str = "cpu"):
        self._model = model.eval().to(device)
        self._tokenizer = tokenizer
        self._device = device
        self._is_clip = model.config.model_type.startswith("clip")
        self._length = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", _LENGTH))
        self.version = f"{name}-{_digest(model, tokenizer)}"
        self.dim = self.encode(["a"]).shape[1]

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        folder: str = "",
        tokenizer: str = "",
        revision: str | None = None,
        weights: str | None = None,
        device: str = "cpu",
    ) -> TextEncoder:
        """Loads a local folder or a hub repository.

        Args:
            folder, tokenizer: subfolders of the model and of its tokenizer, as in diffusers pipelines.
            weights: variant of the weight files, e.g. fp16; None: the default.

        Raises:
            ConfigError: there is no text model.
        """
        import torch
        from transformers import (
            AutoConfig,
            AutoModel,
            AutoTokenizer,
            CLIPTextModel,
            CLIPTextModelWithProjection,
            CLIPTokenizer,
        )
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        where: dict[str, Any] = {"revision": revision}
        try:
            config = AutoConfig.from_pretrained(source, subfolder=folder, **where)
            is_clip = config.model_type in ("clip", "clip_text_model")
            names = config.architectures or []
            kind = AutoModel
            if is_clip:
                kind = CLIPTextModel if "CLIPTextModel" in names else CLIPTextModelWithProjection
            model = kind.from_pretrained(
                source, subfolder=folder, variant=weights, dtype=torch.float32, use_safetensors=True, **where
            )
            reader = CLIPTokenizer if is_clip else AutoTokenizer
            words = reader.from_pretrained(source, subfolder=tokenizer, **where)
            name = str(source).rstrip("/").rsplit("/", 1)[-1]
            return cls(model, words, name, device)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ConfigError(
                f"cache.encoder: {source}: not a text model ({first}); give a local folder or a hub repository, or "
                "`words`"
            ) from None

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(prompts), _BATCH):
                batch = self._tokenizer(
                    list(prompts[start : start + _BATCH]),
                    padding=True,  # to the longest: CLIP is causal, and its vector is that of the end token
                    truncation=True,
                    max_length=self._length,
                    return_tensors="pt",
                ).to(self._device)
                parts.append(self._pooled(batch).float().cpu())
        if not parts:
            return np.zeros((0, self.dim), np.float32)
        return unit(torch.cat(parts).numpy())

    def _pooled(self, batch: Any) -> Any:
        if self._is_clip:
            out = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
        if batch["input_ids"].shape[1] == 0:  # only empty prompts, and a tokenizer without a start token
            return batch["attention_mask"].new_zeros((len(batch["input_ids"]), self.dim))
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


class WordEncoder:
    """An encoder without a model: hashed words and pairs of words, for logs of prompts in any language.

    It measures shared words, not meaning, so CLIP's thresholds do not apply to it.
    """

    def __init__(self, dim: int = 1024):
        from sklearn.feature_extraction.text import HashingVectorizer

        self.dim = dim
        self.version = f"words-{dim}"
        self._hash = HashingVectorizer(n_features=dim, ngram_range=(1, 2), norm="l2", alternate_sign=True)

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        return unit(self._hash.transform(prompts).toarray()) if prompts else np.zeros((0, self.dim), np.float32)


def family_encoder(family: FamilyConfig, name: str | None = None) -> Encoder:
    """Loads the encoder of a family's cache: the named one, else the family's CLIP, else its pipeline's first text
    encoder. ``module:name`` stands for a callable of one's own that makes an :class:`Encoder`.

    The first text encoder is the small one: of SDXL's two, it has 0.12 billion parameters and the other one 0.69.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if name == "words":
        return WordEncoder()
    if name is not None and is_own(name):
        encoder: Encoder = made(name, "cache.encoder", has=("version", "dim", "encode"))
        return encoder
    if name is not None:
        return TextEncoder.load(name)
    if family.clip is not None:
        return TextEncoder.load(family.clip, revision=family.clip_revision)
    return TextEncoder.load(
        family.pipeline,
        folder="text_encoder",
        tokenizer="tokenizer",
        revision=family.revision,
        weights=family.file_set(),
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalizes rows; a row of zeros becomes the first unit vector, so that a cosine is always defined."""
    vectors = np.array(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = ~(np.isfinite(length) & (length > 0)).ravel()
    vectors[empty] = 0
    vectors[empty, :1] = 1
    length[empty] = 1
    return vectors / length


def _digest(model: Any, tokenizer: Any) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()
