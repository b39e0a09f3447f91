"""A head held against samples one by one: calm while they are alike, fitted again once they are surely not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.test_level_head import learnable
from training.drift import DriftRules
from training.level_head import fit_levels
from training.shadow import KEPT, ShadowCheck

RULES = DriftRules(limit=0.1, back=0.2)


@pytest.fixture(scope="module")
def learnt():
    pairs, vectors = learnable()
    return fit_levels(pairs, vectors, "e-1", "f", alpha=0.95)[0]


def fed(head, worse: float = 1.0, count: int = 300, enough: int = 200) -> ShadowCheck:
    """A check that has seen so many samples; on every second one the faster rungs are so many times as good as ever."""
    pairs, vectors = learnable(count, seed=1)
    of = dict(zip(pairs.prompts, vectors, strict=True))
    check = ShadowCheck(head, lambda prompts: np.stack([of[p] for p in prompts]), RULES, enough)
    for i, (prompt, confidence) in enumerate(zip(pairs.prompts, pairs.confidence, strict=True)):
        now = worse if i % 2 else 1.0
        check.take(prompt, (pairs.quality[i] * [1, now, now]).tolist(), confidence)
    return check


def test_the_same_prompts_as_ever_leave_it_alone(learnt):
    check = fed(learnt)
    assert not check.drifted
    assert check.refitted() is None


def test_other_losses_bring_a_new_head_that_holds(learnt):
    check = fed(learnt, worse=0.2)
    assert check.drifted
    head = check.refitted()
    assert head.version != learnt.version
    assert head.about.rungs == learnt.about.rungs
    assert not fed(head, worse=0.2).drifted


def test_no_head_is_fitted_on_a_few_samples(learnt):
    check = fed(learnt, worse=0.2, count=150)
    assert check.drifted
    assert check.refitted() is None


def test_samples_that_cannot_tell_prompts_apart_fit_nothing(learnt):
    check = ShadowCheck(learnt, lambda prompts: np.zeros((len(prompts), 16)), RULES, enough=60)
    for i in range(60):
        check.take(str(i), [1.0, 0.0, 0.0], 0.5)
    assert check.drifted
    assert check.refitted() is None


def test_a_sample_whose_best_image_shows_nothing_says_nothing(learnt):
    check = ShadowCheck(learnt, lambda prompts: np.zeros((len(prompts), 16)))
    assert check.take("p", [0.0, 0.0, 0.0], 0.5) == ()
    assert len(check) == 0


def test_it_keeps_no_more_than_it_needs(learnt):
    check = ShadowCheck(learnt, lambda prompts: np.zeros((len(prompts), 16)))
    for i in range(KEPT + 1):
        check._samples.append((str(i), [1.0, 1.0, 1.0], 0.5))
    assert len(check) == KEPT
