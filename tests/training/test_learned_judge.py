"""A discriminator learns from scores alone, and is measured on prompts that it was not trained on."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from quality.folds import FOLDS, folds_of
from training.learned_judge import Convolutional, Lessons, Matching, Recipe, out_of_fold
from workers.models.matching_judge import MatchingShape


def lessons(count: int = 60, rounds: int = 3) -> tuple[Lessons, torch.Tensor, torch.Tensor]:
    """Images and prompts with one number each; an image is as good as the two are alike."""
    rng = np.random.default_rng(0)
    text, seen = rng.uniform(-1, 1, (count, 1)), rng.uniform(-1, 1, (rounds * count, 1))
    drawn_for = np.arange(rounds * count) % count
    image = np.concatenate([np.arange(len(seen)), np.arange(len(seen))])
    prompt = np.concatenate([drawn_for, rng.integers(count, size=len(seen))])
    score = 1 - np.abs(seen[image, 0] - text[prompt, 0]) / 2
    one = np.ones((len(seen), 1))
    wide = torch.from_numpy(np.concatenate([seen, -seen, seen**2, one], 1)).half()
    words = torch.from_numpy(np.concatenate([text, -text, text**2, one[:count]], 1)).float()
    return Lessons(image, prompt, score, drawn_for, np.full(count, 0.75)), wide, words


def test_every_prompt_is_judged_by_a_network_that_was_trained_without_it() -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    trained: list[np.ndarray] = []

    def fit(inside: np.ndarray, seed: int) -> nn.Module:
        trained.append(inside)
        return nn.Identity()

    def logits(net: nn.Module, prompts: np.ndarray) -> np.ndarray:
        seen.append((trained[-1], prompts))
        return np.zeros((len(prompts), 2))

    out_of_fold(23, fit, logits)
    assert len(seen) == FOLDS
    assert all(not inside[prompts].any() for inside, prompts in seen)
    assert sorted(np.concatenate([prompts for _, prompts in seen]).tolist()) == list(range(23))


def test_a_comparison_with_a_held_out_prompt_is_no_lesson() -> None:
    it, _, _ = lessons()
    inside = folds_of(60) != 0
    chosen = it.among(inside)
    assert inside[it.prompt[chosen]].all()
    assert inside[it.drawn_for[it.image[chosen]]].all()


def test_a_network_learns_to_compare_images_with_prompts() -> None:
    it, seen, words = lessons()
    training = Matching(it, seen, words, MatchingShape(words.shape[1], seen.shape[1]), Recipe(steps=120))
    found = out_of_fold(60, training.fit, training.logits)
    first = it.score[:60]
    assert roc_auc_score(first > np.median(first), found[:, 0]) > 0.8


def test_training_is_reproducible() -> None:
    it, seen, words = lessons()
    training = Matching(it, seen, words, MatchingShape(words.shape[1], seen.shape[1]), Recipe(steps=5))
    everything = np.ones(60, bool)
    first, second = (training.logits(training.fit(everything, 1), np.arange(60)) for _ in range(2))
    assert (first == second).all()


def test_a_convolutional_network_tells_heavy_images_from_light_ones() -> None:
    rng = np.random.default_rng(0)
    light = torch.from_numpy(rng.integers(0, 120, (40, 3, 16, 16), np.uint8))
    heavy = torch.from_numpy(rng.integers(100, 255, (40, 3, 16, 16), np.uint8))
    training = Convolutional(light, heavy, 40, Recipe(steps=20))
    net = training.fit(np.ones(40, bool), 0)
    like_heavy = Convolutional(heavy, light, 40, Recipe(steps=1))
    assert training.logits(net, np.arange(40)).mean() < like_heavy.logits(net, np.arange(40)).mean() - 1
