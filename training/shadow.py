"""Compares a level head with shadow samples, and fits a new head from them when it has drifted. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from training.drift import DriftRules, LevelDrift, alarmed, level_drifts
from training.level_head import fit_levels
from training.level_pairs import LevelPairs
from weir.errors import ConfigError
from weir.prompt_levels import LevelHead

#: A new head is fitted on at least this many samples.
ENOUGH = 200
#: At most this many samples are stored; the oldest leave first.
KEPT = 600


class ShadowCheck:
    """The samples of one head, and whether it has drifted.

    Args:
        encode: maps prompts to unit vectors [N, D], by the encoder that the head was fitted with.
        enough: a new head is fitted on at least this many samples.

    Attributes:
        drifted: whether the head has drifted, by the latest significant result.
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
        """Adds a sample and returns the drift by level.

        Args:
            quality: score of the prompt's image at every rung of the head, from the best to the fastest. A sample whose
                best image has quality 0 is ignored, because nothing can be lost.
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
        """A head that is fitted on the samples, if the head has drifted and there are enough samples; None otherwise.

        It is None, too, when all samples have the same level.
        """
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
