"""What learned discriminators share: the scale of their confidences, and the models of the family that they use."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from quality.clip import ClipScorer
from weir.config import FamilyConfig
from workers.models.text_reader import TextReader
from workers.models.weights_hash import weights_hash


@dataclass(frozen=True, slots=True)
class ConfidenceScale:
    """Maps a network's two logits to a probability: σ(a · first + b · second + c).

    This is Platt's scaling (Platt 1999) with two inputs, fitted on images that the network was not trained on. Isotonic
    regression would fit closer, but its steps give many images one confidence, and a threshold could not divide them.
    """

    first: float
    second: float
    constant: float

    def confidence(self, logits: torch.Tensor) -> torch.Tensor:
        """Confidences 0…1, [B], of logits [B, 2]."""
        return (self.first * logits[:, 0] + self.second * logits[:, 1] + self.constant).sigmoid()

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


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
