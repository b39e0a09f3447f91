"""Shadow samples leave a valid head unchanged, and lead to a new head once it has drifted significantly."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.test_level_head import learnable
from training.drift import DriftRules
from training.level_head import fit_levels
from training.shadow import KEPT, ShadowCheck

RULES = DriftRules(limit=0.1, back=0.2)


@pytest.fixture(scope="module")
def fitted():
    pairs, vectors = learnable()
    return fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)[0]


def checked(head, worse: float = 1.0, count: int = 300, enough: int = 200) -> ShadowCheck:
    """A check with ``count`` samples; on every second one the faster rungs' quality is multiplied by ``worse``."""
    pairs, vectors = learnable(count, seed=1)
    of = dict(zip(pairs.prompts, vectors, strict=True))
    check = ShadowCheck(head, lambda prompts: np.stack([of[p] for p in prompts]), RULES, enough)
    for i, (prompt, confidence) in enumerate(zip(pairs.prompts, pairs.confidence, strict=True)):
        now = worse if i % 2 else 1.0
        check.take(prompt, (pairs.quality[i] * [1, now, now]).tolist(), confidence)
    return check


def test_samples_like_the_recorded_ones_do_not_refit_the_head(fitted):
    check = checked(fitted)
    assert not check.drifted
    assert check.refitted() is None


def test_other_losses_lead_to_a_new_head_that_has_not_drifted(fitted):
    check = checked(fitted, worse=0.2)
    assert check.drifted
    head = check.refitted()
    assert head.version != fitted.version
    assert head.about.rungs == fitted.about.rungs
    assert not checked(head, worse=0.2).drifted


def test_no_head_is_fitted_on_too_few_samples(fitted):
    check = checked(fitted, worse=0.2, count=150)
    assert check.drifted
    assert check.refitted() is None


def test_samples_of_a_single_level_fit_no_head(fitted):
    check = ShadowCheck(fitted, lambda prompts: np.zeros((len(prompts), 16)), RULES, enough=60)
    for i in range(60):
        check.take(str(i), [1.0, 0.0, 0.0], 0.5)
    assert check.drifted
    assert check.refitted() is None


def test_a_sample_whose_best_image_has_no_quality_is_ignored(fitted):
    check = ShadowCheck(fitted, lambda prompts: np.zeros((len(prompts), 16)))
    assert check.take("p", [0.0, 0.0, 0.0], 0.5) == ()
    assert len(check) == 0


def test_the_number_of_stored_samples_is_bounded(fitted):
    check = ShadowCheck(fitted, lambda prompts: np.zeros((len(prompts), 16)))
    for i in range(KEPT + 1):
        check._samples.append((str(i), [1.0, 1.0, 1.0], 0.5))
    assert len(check) == KEPT
