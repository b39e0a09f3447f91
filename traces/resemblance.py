"""Similarity of the prompts of a log to earlier ones, on which an approximate cache depends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix


@dataclass(frozen=True, slots=True)
class Resemblance:
    """Shares of all prompts of a log, 0…1.

    Attributes:
        near_duplicate: prompts with a near duplicate before them.
        near_duplicate_within: prompts with a near duplicate among the last few prompts before them.
        exact_repeat: prompts that occurred before word for word.
    """

    near_duplicate: float
    near_duplicate_within: float
    exact_repeat: float


def resemblance(prompts: Sequence[str], *, threshold: float = 0.8, within: int = 10) -> Resemblance:
    """Measures a log in submission order.

    Two prompts are near duplicates when their sets of words have a Jaccard similarity of at least ``threshold``;
    ``within`` is the number of last prompts for ``near_duplicate_within``. Takes O(n²) memory, for at most a few
    thousand prompts.
    """
    words: dict[str, int] = {}
    rows, columns = [], []
    for row, prompt in enumerate(prompts):
        for word in set(re.findall(r"\w+", prompt.lower())):
            rows.append(row)
            columns.append(words.setdefault(word, len(words)))
    has = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(prompts), max(1, len(words))))
    size = np.asarray(has.sum(axis=1)).ravel()
    common = (has @ has.T).toarray()
    near = common >= threshold * np.maximum(size[:, None] + size[None, :] - common, 1e-9)
    near = np.tril(near, -1)
    recent = np.triu(near, -within)
    return Resemblance(
        near_duplicate=float(near.any(axis=1).mean()),
        near_duplicate_within=float(recent.any(axis=1).mean()),
        exact_repeat=1 - len(set(prompts)) / len(prompts),
    )
