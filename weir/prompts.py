"""The weights of a prompt's parts, in the syntax that most tools for Stable Diffusion share. Pure text."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from weir.errors import InvalidRequest

#: ``plain``: every character belongs to the prompt. ``weighted``: parentheses give weights (:func:`parsed`).
PromptSyntax = Literal["plain", "weighted"]
#: Factor of the weight in ``(parentheses)``, and divisor of that in ``[brackets]``.
EMPHASIS = 1.1
#: Largest weight. With larger ones models give noise.
MOST_WEIGHT = 2.0
#: Finds a weight that is out of range, by Python's rules and by those of JSON schemas.
BAD_WEIGHT = r":[ ]*(?!(?:[012]|[01]?\.[0-9]{1,9}|2\.0{1,9})[ ]*\))[-+]?[.0-9]+[ ]*\)"

_BAD = re.compile(BAD_WEIGHT)
_TOKENS = re.compile(r"\\[()\[\]\\]|:[ ]*(?:[0-9]|[0-9]?\.[0-9]{1,9})[ ]*\)|[()\[\]]|\\|:|[^\\:()\[\]]+")


class PromptPart(NamedTuple):
    """A part of a prompt, and the weight of its tokens; 1 is that of a prompt without weights."""

    text: str
    weight: float = 1.0


Prompt: TypeAlias = tuple[PromptPart, ...]


def parsed(prompt: str, syntax: PromptSyntax) -> Prompt:
    """The parts of a prompt.

    By the syntax ``weighted``, ``(text:1.3)`` has the weight 1.3, ``(text)`` 1.1 and ``[text]`` 1 / 1.1; nested weights
    multiply, up to 2. A parenthesis or bracket without its partner, or after a backslash, is a character of the prompt.
    """
    if syntax == "plain":
        return (PromptPart(prompt),)
    tokens = _TOKENS.findall(prompt)
    factors = _factors(tokens)
    ends = {end for end, _ in factors.values()}
    weights, parts = [1.0], []
    for place, token in enumerate(tokens):
        if place in factors:
            weights.append(min(MOST_WEIGHT, weights[-1] * factors[place][1]))
        elif place in ends:
            weights.pop()
        else:
            parts.append(PromptPart(token[1:] if _escaped(token) else token, weights[-1]))
    return _joined(parts)


def _factors(tokens: list[str]) -> dict[int, tuple[int, float]]:
    """By place of each opening token that has a partner: the partner's place, and the factor of what is between."""
    opened: dict[str, list[int]] = {")": [], "]": []}
    factors: dict[int, tuple[int, float]] = {}
    for place, token in enumerate(tokens):
        if token in ("(", "["):
            opened[")" if token == "(" else "]"].append(place)
        elif token[-1] in opened and not _escaped(token) and opened[token[-1]]:
            start = opened[token[-1]].pop()
            for others in opened.values():
                while others and others[-1] > start:
                    others.pop()  # it has no partner between these two
            number = float(token[1:-1]) if token[0] == ":" else EMPHASIS if token == ")" else 1 / EMPHASIS
            factors[start] = place, number
    return factors


def _escaped(token: str) -> bool:
    return len(token) == 2 and token[0] == "\\"


def plain_text(prompt: str, syntax: PromptSyntax) -> str:
    """What a prompt says, without the characters that give weights."""
    return "".join(part.text for part in parsed(prompt, syntax))


def check_weights(param: str, prompt: str, syntax: PromptSyntax) -> None:
    """Checks the weights that a prompt names.

    Raises:
        InvalidRequest: a weight is out of range.
    """
    if syntax == "weighted" and (bad := _BAD.search(prompt)):
        given = bad[0][1:-1].strip()
        raise InvalidRequest(f"{param} has the weight {given}; accepted: 0 to {MOST_WEIGHT:g}", param=param)


def _joined(parts: list[PromptPart]) -> Prompt:
    """The parts, with neighbours of equal weight as one."""
    joined: list[PromptPart] = []
    for part in parts:
        if joined and joined[-1].weight == part.weight:
            joined[-1] = PromptPart(joined[-1].text + part.text, part.weight)
        elif part.text:
            joined.append(part)
    return tuple(joined) or (PromptPart(""),)
