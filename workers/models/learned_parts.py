"""What learned discriminators share: the scale of their confidences, and the models of the family that they use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from quality.clip import ClipScorer
from weir.config import FamilyConfig
from workers.models.text_reader import TextReader
from workers.models.weights_hash import weights_hash


@dataclass(frozen=True, slots=True)
class ConfidenceScale:
    """Maps what a network says of an image, K numbers, to a probability: σ(weights · numbers + constant).

    This is Platt's scaling (Platt 1999) with several inputs, fitted on images that the network was not trained on.
    Isotonic regression would fit closer, but its steps give many images one confidence, and a threshold could not
    divide them.
    """

    weights: tuple[float, ...]
    constant: float

    def confidence(self, logits: torch.Tensor) -> torch.Tensor:
        """Confidences 0…1, [B], of logits [B, K]."""
        weights = torch.tensor(self.weights, dtype=logits.dtype, device=logits.device)
        return (logits @ weights + self.constant).sigmoid()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ConfidenceScale:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(tuple(float(it) for it in given["weights"]), float(given["constant"]))


@dataclass(frozen=True)
class FamilyModels:
    """A family's reader of prompts, and its CLIP if it names one.

    Attributes:
        version: hash of their weights; a network that was trained with another version gives nonsense.
    """

    reader: TextReader
    clip: ClipScorer | None

    @classmethod
    def load(cls, family: FamilyConfig, device: str = "cpu") -> FamilyModels:
        """Loads the family's CLIP, or the first text encoder of its pipeline if it names none.

        Raises:
            ConfigError: a model cannot be loaded.
        """
        if family.clip is None:
            return cls(TextReader.load(family.pipeline, family.revision, device), None)
        clip = ClipScorer.load(family.clip, device, revision=family.clip_revision)
        return cls(TextReader(clip.model.text_model, clip.tokenizer, device), clip)

    def read(self, prompts: list[str]) -> torch.Tensor:
        """Embeddings of prompts, [B, T]: the CLIP's own one, which lies near those of images that fit, and then the
        states of the text model. Without a CLIP only the latter."""
        states = self.reader.read(prompts)
        return states if self.clip is None else torch.cat([self.clip.embed_text(prompts).to(states.device), states], 1)

    @property
    def aligned(self) -> int:
        """Width of the CLIP's own embeddings; 0 without a CLIP."""
        return 0 if self.clip is None else int(self.clip.model.config.projection_dim)

    @property
    def version(self) -> str:
        return weights_hash(self.reader.model if self.clip is None else self.clip.model)
