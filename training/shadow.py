"""Holds a level head against shadow samples as they come, and fits a new one from them when it has drifted. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from training.drift import DriftRules, LevelDrift, alarmed, level_drifts
from training.level_head import fit_levels
from training.level_pairs import LevelPairs
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead

#: Samples that a new head is fitted on at least.
ENOUGH = 200
#: Samples that are kept; the oldest leave first.
KEPT = 600


class ShadowCheck:
    """What is known of one head.

    Args:
        encode: unit vectors [N, D] of prompts, by the encoder that the head was fitted on.

    Attributes:
        drifted: whether the head is surely wrong, by the last word that was sure.
    """

    def __init__(
        self,
        head: LevelHead,
        encode: Callable[[Sequence[str]], np.ndarray],
        rules: DriftRules = DriftRules(),
        enough: int = ENOUGH,
    ):
        self.head = head
        self.drifted = False
        self._encode = encode
        self._rules = rules
        self._enough = enough
        self._samples: deque[tuple[str, Sequence[float], float]] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._samples)

    def take(self, prompt: str, quality: Sequence[float], confidence: float) -> tuple[LevelDrift, ...]:
        """One more sample; the drift by level with it.

        Args:
            quality: of the prompt's image at every rung of the head, from the best to the fastest. Where the best image
                shows nothing of the prompt nothing can be lost, so the sample says nothing and is left out.
        """
        if quality[0] > 0:
            self._samples.append((prompt, quality, confidence))
        if not self._samples:
            return ()
        pairs = self._pairs()
        drifts = level_drifts(self.head, pairs, self._encode(pairs.prompts))
        self.drifted = alarmed(drifts, self._rules, self.drifted)
        return drifts

    def refitted(self) -> LevelHead | None:
        """A head fitted on the samples, once it is needed and there are enough of them; None while it is not, or where
        they cannot tell prompts apart."""
        if not self.drifted or len(self) < self._enough:
            return None
        pairs, about = self._pairs(), self.head.about
        try:
            head, _ = fit_levels(pairs, self._encode(pairs.prompts), about.encoder, about.family, alpha=about.alpha)
        except ConfigError:
            return None
        return head

    def _pairs(self) -> LevelPairs:
        prompts, quality, confidence = zip(*self._samples, strict=True)
        return LevelPairs(list(prompts), self.head.about.rungs, np.array(quality, float), np.array(confidence, float))
