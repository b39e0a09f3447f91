"""Procedurally rendered scenes with captions, the training data of the embedded family.

A scene is plain data (:class:`Scene`). :func:`render` draws it with signed distance functions at any size, and
:func:`caption` describes a part of it. What a caption leaves open (positions, the direction of the light, often colour,
texture, size or background) is random. The images of one caption therefore differ, and their mean is blurred: a
diffusion model needs many denoising steps to commit to one sharp sample.

Scenes with one object are easy to generate; those with three or four objects are hard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "yellow", "green", "blue", "purple", "black")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "sand", "sky")
RELATIONS = ("left of", "right of", "above", "below")

MAX_OBJECTS = 4
#: Default shares of scenes with one, two, three and four objects.
COUNT_SHARES = (0.42, 0.36, 0.16, 0.06)
_TEXTURE_SHARES = (0.76, 0.12, 0.12)
_TILT = 0.08  # largest rotation of an object to either side, radians
_PLACES = (0.23, 0.5, 0.77)  # objects are near the crossings of these lines
_JITTER = 0.02
_RADII = {"small": (0.115, 0.125), "large": (0.183, 0.197)}

_RGB = {
    "red": (0.86, 0.12, 0.12), "yellow": (0.98, 0.82, 0.10), "green": (0.12, 0.62, 0.22),
    "blue": (0.13, 0.30, 0.88), "purple": (0.58, 0.18, 0.72), "black": (0.10, 0.10, 0.12),
}  # fmt: skip
_BACKGROUND_RGB = {
    "white": (0.97, 0.97, 0.97), "gray": (0.62, 0.62, 0.64), "sand": (0.91, 0.79, 0.60), "sky": (0.62, 0.83, 0.96),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object. Lengths are fractions of the image's side; angles are radians."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    rotation: float
    phase: float
    says_colour: bool = True
    says_texture: bool = True
    says_size: bool = True

    def phrase(self) -> str:
        """The object's phrase in the caption, with the stated attributes only, e.g. ``a small striped red circle``."""
        words = [
            self.size if self.says_size else "",
            self.texture if self.says_texture and self.texture != "plain" else "",
            self.colour if self.says_colour else "",
            self.shape,
        ]
        return "a " + " ".join(w for w in words if w)


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image.

    ``objects`` are in the order of the caption: reading order, unless ``relation`` describes the positions of the two.
    """

    objects: tuple[SceneObject, ...]
    background: str
    light: float
    says_background: bool = True
    relation: str | None = None


def _holds(relation: str, a: SceneObject, b: SceneObject, margin: float = 0.06) -> bool:
    """Whether ``relation`` holds between ``a`` and ``b``, by more than ``margin`` of the image's side."""
    dx, dy = b.x - a.x, b.y - a.y
    gap = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return gap > margin and gap >= 0.8 * max(abs(dx), abs(dy))


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _place(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]] | None:
    """Random positions at which objects overlap at most at their rims; None when none were found."""
    placed: list[tuple[float, float]] = []
    for i, radius in enumerate(radii):
        for _ in range(40):
            x, y = rng.choice(_PLACES, size=2) + rng.uniform(-_JITTER, _JITTER, size=2)
            if all(np.hypot(x - px, y - py) > 0.92 * (radius + radii[j]) for j, (px, py) in enumerate(placed)):
                placed.append((float(x), float(y)))
                break
        if len(placed) == i:
            return None
    return placed


def _reading_order(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    """The objects line by line from the top, and each line from the left. With lists in any order, all n! layouts of a
    caption would have to be learned."""

    def line(item: SceneObject) -> int:
        return int(np.argmin([abs(item.y - place) for place in _PLACES]))

    return tuple(sorted(objects, key=lambda t: (line(t), t.x)))


def sample_scene(rng: np.random.Generator, count: int | None = None, shares: tuple[float, ...] = COUNT_SHARES) -> Scene:
    """A random scene with ``count`` objects, 1 to 4; by default a random number by ``shares``."""
    if count is None:
        count = 1 + int(rng.choice(MAX_OBJECTS, p=shares))
    while True:
        sizes = [_pick(rng, SIZES) if count < 4 or i == 0 else "small" for i in range(count)]
        radii = [float(rng.uniform(*_RADII[size])) for size in sizes]
        positions = _place(rng, radii)
        if positions is None:
            continue
        kinds = [(_pick(rng, SHAPES), _pick(rng, COLOURS)) for _ in range(count)]
        if len(set(kinds)) == count:  # a caption could not distinguish two objects of one kind
            break
    objects = tuple(
        SceneObject(
            shape=shape,
            colour=colour,
            texture=str(rng.choice(TEXTURES, p=_TEXTURE_SHARES)),
            size=size,
            x=x,
            y=y,
            radius=radius,
            rotation=float(rng.uniform(-_TILT, _TILT)),
            phase=0.25,
            says_colour=bool(rng.random() < 0.88),
            says_texture=bool(rng.random() < 0.8),
            says_size=bool(rng.random() < 0.4),
        )
        for (shape, colour), size, radius, (x, y) in zip(kinds, sizes, radii, positions, strict=True)
    )
    relation = None
    if count == 2 and rng.random() < 0.7:
        holding = [r for r in RELATIONS if _holds(r, objects[0], objects[1])]
        relation = holding[0] if holding else None
    return Scene(
        objects if relation else _reading_order(objects),
        background=_pick(rng, BACKGROUNDS),
        light=float(rng.uniform(0, 2 * np.pi)),
        says_background=bool(rng.random() < 0.55),
        relation=relation,
    )


def resample(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another scene with the same caption: everything that the caption leaves open is random again."""
    while True:
        other = sample_scene(rng, len(scene.objects))
        fresh = other.objects if scene.relation else _reading_order(other.objects)
        objects = tuple(
            replace(
                new,
                shape=old.shape,
                colour=old.colour if old.says_colour else new.colour,
                texture=old.texture if old.says_texture else new.texture,
                says_colour=old.says_colour,
                says_texture=old.says_texture,
                says_size=old.says_size,
            )
            for old, new in zip(scene.objects, fresh, strict=True)
        )
        if any(old.says_size and old.size != new.size for old, new in zip(scene.objects, objects, strict=True)):
            continue
        if scene.relation and not _holds(scene.relation, objects[0], objects[1]):
            continue
        background = scene.background if scene.says_background else other.background
        return Scene(objects, background, other.light, scene.says_background, scene.relation)


def caption(scene: Scene) -> str:
    """The caption of a scene, e.g. ``a red circle left of a small blue star on a gray background``."""
    phrases = [t.phrase() for t in scene.objects]
    if scene.relation:
        text = f"{phrases[0]} {scene.relation} {phrases[1]}"
    elif len(phrases) == 1:
        text = phrases[0]
    else:
        text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return f"{text} on a {scene.background} background" if scene.says_background else text


# -------------------------------------------------------------------------------------------- rendering


def _polygon(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon ``points`` [P, 2] (negative inside), after Quilez."""
    d = np.full_like(x, 1e9)
    sign = np.ones_like(x)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        d = np.minimum(d, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        a, b, c = y >= ay, y < by, ex * wy > ey * wx
        sign = np.where((a & b & c) | ~(a | b | c), -sign, sign)
    return sign * np.sqrt(d)


def _ray_points(radii: list[float]) -> np.ndarray:
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii) - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radii)[:, None]


_TRIANGLE = _ray_points([1.08] * 3)
_STAR = _ray_points([1.08, 0.46] * 5)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the unit ``shape``, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.25
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.78
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(ax, ay) - 0.98, np.minimum(ax, ay) - 0.33)
    return _polygon(_TRIANGLE if shape == "triangle" else _STAR, x, y)


def _texture(item: SceneObject, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    """Share of the texture's second tone at each point, 0 to 1; x and y are fractions of the side."""
    if item.texture == "striped":
        wave = np.sin(2 * np.pi * (x / 0.088 + item.phase))
        return np.clip(wave * 0.088 / (2 * np.pi * pixel) + 0.5, 0, 1)
    if item.texture == "dotted":
        period = 0.094
        u = (x / period + item.phase) % 1 - 0.5
        v = (y / period + 0.37 * item.phase) % 1 - 0.5
        return np.clip((0.29 - np.hypot(u, v)) * period / pixel + 0.5, 0, 1)
    return np.zeros_like(x)


def render(scene: Scene, size: int = 64) -> np.ndarray:
    """The scene as an image, uint8 [size, size, 3]; anti-aliased, lit from ``scene.light``, with soft shadows."""
    pixel = 1.0 / size
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    px, py = np.meshgrid(grid, grid)
    lx, ly = np.cos(scene.light), np.sin(scene.light)
    shade = 1 + 0.16 * ((px - 0.5) * lx + (py - 0.5) * ly)
    image = np.asarray(_BACKGROUND_RGB[scene.background], np.float32) * shade[..., None]
    for item in scene.objects:
        dx, dy = px - item.x, py - item.y
        c, s = np.cos(item.rotation), np.sin(item.rotation)
        u, v = c * dx + s * dy, c * dy - s * dx
        r = item.radius
        # The shadow falls away from the light, blurred over a few pixels.
        sx, sy = dx + 0.045 * lx, dy + 0.045 * ly
        shadow = _signed_distance(item.shape, (c * sx + s * sy) / r, (c * sy - s * sx) / r) * r
        image *= 1 - 0.38 * np.clip(0.5 - shadow / (2.6 / 64), 0, 1)[..., None]
        distance = _signed_distance(item.shape, u / r, v / r) * r
        cover = np.clip(0.5 - distance / pixel, 0, 1)[..., None]
        base = np.asarray(_RGB[item.colour], np.float32)
        second = base + (1 - base) * 0.72  # a pale tone of the same hue
        tone = _texture(item, u, v, pixel)[..., None]
        lit = 1 + 0.26 * (dx * lx + dy * ly)[..., None] / r
        body = (base * (1 - tone) + second * tone) * lit + 0.05 * np.maximum(lit - 1, 0)
        image = image * (1 - cover) + body * cover
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
