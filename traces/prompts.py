"""Prompts in the words of the embedded family, in an order as real logs have it: themes recur, neighbours resemble.

A user has a picture in mind, asks for it, changes one attribute, asks again, sometimes asks for the very same once
more; several users do so at a time. :class:`Habits` says how often, :func:`prompt_log` draws such a log.
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

#: How often a prompt asks for 1, 2, 3 or 4 objects.
COUNT_SHARES = (0.40, 0.30, 0.18, 0.12)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object as a prompt asks for it; None leaves the attribute open."""

    shape: str
    colour: str | None = None
    texture: str | None = None
    size: str | None = None

    @property
    def text(self) -> str:
        return " ".join(w for w in ("a", self.size, self.texture, self.colour, self.shape) if w)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a user has in mind: one to four things; ``relation`` stands between the two of a pair."""

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    @property
    def text(self) -> str:
        """The prompt, e.g. ``a small striped red circle left of a blue star on a gray background``."""
        phrases = [t.text for t in self.things]
        if self.relation:
            text = f"{phrases[0]} {self.relation} {phrases[1]}"
        elif len(phrases) == 1:
            text = phrases[0]
        else:
            text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return f"{text} on a {self.background} background" if self.background else text

    @property
    def drawable(self) -> bool:
        """No two things of one kind (a prompt could not tell them apart), and of four only the first may be large."""
        kinds = {(t.shape, t.colour) for t in self.things}
        crowded = len(self.things) == 4 and any(t.size == "large" for t in self.things[1:])
        return len(kinds) == len(self.things) and not crowded


class Habits(BaseModel):
    """How the users of a log behave."""

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


def _subject(rng: np.random.Generator, count: int) -> Picture:
    """Only shapes and, mostly, colours: what a theme consists of."""
    while True:
        things = tuple(
            Thing(_pick(rng, SHAPES), _pick(rng, COLOURS) if rng.random() < 0.88 else None) for _ in range(count)
        )
        if (picture := Picture(things)).drawable:
            return picture


def _detail(subject: Picture, rng: np.random.Generator) -> Picture:
    """The subject with textures, sizes, relation and background as one user wants them."""
    count = len(subject.things)
    things = tuple(
        replace(
            thing,
            texture=_pick(rng, TEXTURES) if rng.random() < 0.35 else None,
            size=_pick(rng, SIZES if count < 4 or i == 0 else ("small",)) if rng.random() < 0.4 else None,
        )
        for i, thing in enumerate(subject.things)
    )
    relation = _pick(rng, RELATIONS) if count == 2 and rng.random() < 0.6 else None
    return Picture(things, relation, _pick(rng, BACKGROUNDS) if rng.random() < 0.55 else None)


def draw_picture(rng: np.random.Generator) -> Picture:
    """A random picture, independent of all others."""
    count = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    return _detail(_subject(rng, count), rng)


def edit(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture with exactly one attribute changed; the number of things stays."""
    while True:
        index = int(rng.integers(len(picture.things)))
        thing = picture.things[index]
        attribute = _pick(rng, ("shape", "colour", "texture", "size", "relation", "background"))
        if attribute == "background":
            return replace(picture, background=_pick(rng, BACKGROUNDS, picture.background))
        if attribute == "relation":
            if picture.relation is None:
                continue
            return replace(picture, relation=_pick(rng, RELATIONS, picture.relation))
        names = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}[attribute]
        changed = replace(thing, **{attribute: _pick(rng, names, getattr(thing, attribute))})
        edited = replace(picture, things=(*picture.things[:index], changed, *picture.things[index + 1 :]))
        if edited.drawable:
            return edited


def prompt_log(rng: np.random.Generator, count: int, habits: Habits | None = None) -> list[str]:
    """``count`` prompts in submission order; the same generator state and habits give the same log."""
    habits = habits or Habits()
    themes = {
        things: [_subject(rng, things) for _ in range(habits.themes)] for things in range(1, len(COUNT_SHARES) + 1)
    }
    popularity = np.arange(1, habits.themes + 1, dtype=float) ** -habits.zipf
    popularity /= popularity.sum()
    users: deque[Picture] = deque(maxlen=habits.users)
    log: list[str] = []
    while len(log) < count:
        if users and rng.random() < habits.goes_on:
            picture = users[int(rng.integers(len(users)))]
            users.remove(picture)
            if rng.random() >= habits.repeats:
                picture = edit(picture, rng)
        else:
            things = 1 + int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
            picture = _detail(themes[things][int(rng.choice(habits.themes, p=popularity))], rng)
        users.append(picture)
        log.append(picture.text)
    return log


def prompt_by_id(prompt_id: int) -> str:
    """The prompt that stands for an id of a trace whose own prompts are not at hand; equal ids give equal prompts."""
    return draw_picture(np.random.default_rng((0x3E1, prompt_id))).text
