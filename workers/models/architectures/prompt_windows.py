"""The windows of a prompt's tokens that fit a text encoder, and the weights of its parts.

Weights are those of compel: the states of a part's tokens move away from those of an empty prompt as the weight rises,
and a part of a weight below 1 is also blended out in favour of the prompt without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from weir.prompts import Prompt, PromptPart

#: Largest number of windows of a prompt. Each one takes as much memory and time of the text encoders as a short prompt.
MOST_WINDOWS = 8
#: Smallest weight when a part is blended out: by a weight of 0 it would be divided by zero.
_LEAST_WEIGHT = 1e-5


class Window(NamedTuple):
    """Tokens that a text encoder takes at once, without the marks of begin and end.

    Attributes:
        parts: of each token, the number of the part of the prompt that it belongs to.
    """

    tokens: list[int]
    parts: list[int]


class Windows(NamedTuple):
    """The windows of a prompt for each text encoder, and the number of tokens beyond the last window."""

    of_encoder: list[list[Window]]
    unused: int


class Encoded(NamedTuple):
    """A prompt by one text encoder: the states of W windows [W, T, D], and the pooled first window [P] or None."""

    states: torch.Tensor
    pooled: torch.Tensor | None


def split_tokens(tokenizer: Any, parts: Sequence[PromptPart]) -> tuple[list[Window], int]:
    """Splits tokens into windows, between words where a word fits one, and counts the tokens that are left."""
    tokens: list[int] = []
    owners: list[int] = []
    for number, part in enumerate(parts):
        own = tokenizer(part.text).input_ids[1:-1]
        tokens += own
        owners += [number] * len(own)
    length = tokenizer.model_max_length - 2
    windows: list[Window] = []
    while len(tokens) > length and len(windows) < MOST_WINDOWS:
        ends = [i for i, it in enumerate(tokenizer.convert_ids_to_tokens(tokens[:length]), 1) if it.endswith("</w>")]
        end = ends[-1] if ends else length
        windows.append(Window(tokens[:end], owners[:end]))
        tokens, owners = tokens[end:], owners[end:]
    if len(windows) == MOST_WINDOWS:
        return windows, len(tokens)
    return [*windows, Window(tokens, owners)], 0


def with_weights(
    states: torch.Tensor,
    empty: torch.Tensor,
    prompt: Prompt,
    windows: Sequence[Window],
    without: Callable[[list[Window], int], torch.Tensor],
) -> torch.Tensor:
    """The states [W, T, D] of a prompt with the weights of its parts.

    Args:
        states: those without weights.
        empty: the states [T, D] of an empty prompt.
        without: encodes windows without the tokens of the part of a number.
    """
    weights = states.new_ones(states.shape[:2])
    for row, window in enumerate(windows):
        for place, number in enumerate(window.parts, 1):
            weights[row, place] = prompt[number].weight
    weights = weights[..., None]

    def scaled(given: torch.Tensor) -> torch.Tensor:
        return given.where(weights == 1, empty + (given - empty) * weights)

    blended, total = scaled(states), 1.0
    for number, part in enumerate(prompt):
        rows = [row for row, window in enumerate(windows) if number in window.parts]
        if part.weight < 1 and rows:
            lacking = states.clone()
            lacking[rows] = without([windows[row] for row in rows], number)
            share = math.tan((1 - max(_LEAST_WEIGHT, part.weight)) * math.pi / 2)
            blended, total = blended + share * scaled(lacking), total + share
    return blended / total
