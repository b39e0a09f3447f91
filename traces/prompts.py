"""Synthetic prompts in the embedded family's vocabulary, in which themes recur as in real logs.

A user submits a prompt, changes one attribute and submits it again, and sometimes repeats it unchanged; several users
do so at the same time. :class:`Habits` holds the probabilities, and :func:`prompt_log` generates a log.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
TEXTURES = ("striped", "dotted")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "sand", "sky")
RELATIONS = ("left of", "right of", "above", "below")

#: Shares of prompts that ask for 1, 2, 3 and 4 objects.
COUNT_SHARES = (0.40, 0.30, 0.18, 0.12)


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One object of a prompt; attributes that are None are not mentioned."""

    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    @property
    def text(self) -> str:
        return " ".join(w for w in ("a", self.size, self.texture, self.colour, self.shape) if w)


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """The content of a prompt: one to four objects; two objects may have a ``relation``."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def text(self) -> str:
        """The prompt, e.g. ``a small striped red circle left of a blue star on a gray background``."""
        phrases = [t.text for t in self.objects]
        if self.relation:
            text = f"{phrases[0]} {self.relation} {phrases[1]}"
        elif len(phrases) == 1:
            text = phrases[0]
        else:
            text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return f"{text} on a {self.background} background" if self.background else text

    @property
    def valid(self) -> bool:
        """Whether no two objects have the same shape and colour, and of four objects only the first may be large."""
        kinds = {(t.shape, t.colour) for t in self.objects}
        crowded = len(self.objects) == 4 and any(t.size == "large" for t in self.objects[1:])
        return len(kinds) == len(self.objects) and not crowded


class Habits(BaseModel):
    """Parameters of a log of prompts: how users repeat and edit prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    themes: int = Field(default=400, ge=1, description="subjects that users come back to, for each number of objects")
    zipf: float = Field(
        default=0.6, ge=0, description="the n-th most popular theme is asked for as often as n ** -zipf"
    )
    users: int = Field(default=4, ge=1, description="users who are trying prompts at the same time")
    goes_on: float = Field(
        default=0.5, ge=0, lt=1, description="share of prompts with which one of these users goes on"
    )
    repeats: float = Field(default=0.2, ge=0, le=1, description="share of those that repeat the last prompt exactly")


def _pick(rng: np.random.Generator, names: tuple[str, ...], but: str | None = None) -> str:
    choices = [n for n in names if n != but]
    return choices[int(rng.integers(len(choices)))]


def _subject(rng: np.random.Generator, count: int) -> PromptSpec:
    """A random theme: objects with shapes and, mostly, colours."""
    while True:
        objects = tuple(
            ObjectSpec(_pick(rng, SHAPES), _pick(rng, COLOURS) if rng.random() < 0.88 else None) for _ in range(count)
        )
        if (spec := PromptSpec(objects)).valid:
            return spec


def _detail(subject: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    """The theme with random textures, sizes, relation and background."""
    count = len(subject.objects)
    objects = tuple(
        replace(
            item,
            texture=_pick(rng, TEXTURES) if rng.random() < 0.35 else None,
            size=_pick(rng, SIZES if count < 4 or i == 0 else ("small",)) if rng.random() < 0.4 else None,
        )
        for i, item in enumerate(subject.objects)
    )
    relation = _pick(rng, RELATIONS) if count == 2 and rng.random() < 0.6 else None
    return PromptSpec(objects, relation, _pick(rng, BACKGROUNDS) if rng.random() < 0.55 else None)


def random_prompt(rng: np.random.Generator) -> PromptSpec:
    """A random prompt, independent of all others."""
    count = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    return _detail(_subject(rng, count), rng)


def edit(spec: PromptSpec, rng: np.random.Generator) -> PromptSpec:
    """Changes exactly one attribute of a prompt; the number of objects stays."""
    while True:
        index = int(rng.integers(len(spec.objects)))
        item = spec.objects[index]
        attribute = _pick(rng, ("shape", "colour", "texture", "size", "relation", "background"))
        if attribute == "background":
            return replace(spec, background=_pick(rng, BACKGROUNDS, spec.background))
        if attribute == "relation":
            if spec.relation is None:
                continue
            return replace(spec, relation=_pick(rng, RELATIONS, spec.relation))
        names = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}[attribute]
        changed = replace(item, **{attribute: _pick(rng, names, getattr(item, attribute))})
        edited = replace(spec, objects=(*spec.objects[:index], changed, *spec.objects[index + 1 :]))
        if edited.valid:
            return edited


def prompt_log(rng: np.random.Generator, count: int, habits: Habits | None = None) -> list[str]:
    """Generates ``count`` prompts in submission order; equal generator states and habits give equal logs."""
    habits = habits or Habits()
    themes = {
        objects: [_subject(rng, objects) for _ in range(habits.themes)] for objects in range(1, len(COUNT_SHARES) + 1)
    }
    popularity = np.arange(1, habits.themes + 1, dtype=float) ** -habits.zipf
    popularity /= popularity.sum()
    users: deque[PromptSpec] = deque(maxlen=habits.users)
    log: list[str] = []
    while len(log) < count:
        if users and rng.random() < habits.goes_on:
            spec = users[int(rng.integers(len(users)))]
            users.remove(spec)
            if rng.random() >= habits.repeats:
                spec = edit(spec, rng)
        else:
            objects = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
            spec = _detail(themes[objects][int(rng.choice(habits.themes, p=popularity))], rng)
        users.append(spec)
        log.append(spec.text)
    return log


def prompt_by_id(prompt_id: int) -> str:
    """A prompt for an id of a trace whose own prompts are not available; equal ids give equal prompts."""
    return random_prompt(np.random.default_rng((0x3E1, prompt_id))).text
