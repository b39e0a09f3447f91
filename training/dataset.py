"""The rendered training set: images, captions and labels of objects, built once and stored as memory-mapped arrays."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNT_SHARES,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    caption,
    render,
    sample_scene,
)

#: Columns of ``objects``: attribute indices (−1: no such object), whether the caption states each attribute, and the
#: centre and the radius in thousandths of the side.
OBJECT_COLUMNS = (
    "shape", "colour", "texture", "size", "says_colour", "says_texture", "says_size", "x", "y", "radius",
)  # fmt: skip
_CHUNK = 500


@dataclass(frozen=True)
class SceneData:
    """A set of N scenes.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        objects: int16 [N, 4, 10], with the columns ``OBJECT_COLUMNS``.
        backgrounds: int8 [N, 2]: index, and whether the caption states it.
        relations: int8 [N]; −1 for none.
        captions: N strings.
    """

    images: np.ndarray
    objects: np.ndarray
    backgrounds: np.ndarray
    relations: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def label(scene: Scene) -> tuple[np.ndarray, tuple[int, int], int]:
    """The scene as integers: its entries of ``objects``, ``backgrounds`` and ``relations``."""
    rows = np.full((MAX_OBJECTS, len(OBJECT_COLUMNS)), -1, np.int16)
    for i, t in enumerate(scene.objects):
        rows[i] = (
            SHAPES.index(t.shape),
            COLOURS.index(t.colour),
            TEXTURES.index(t.texture),
            SIZES.index(t.size),
            t.says_colour,
            t.says_texture,
            t.says_size,
            round(t.x * 1000),
            round(t.y * 1000),
            round(t.radius * 1000),
        )
    relation = RELATIONS.index(scene.relation) if scene.relation else -1
    return rows, (BACKGROUNDS.index(scene.background), int(scene.says_background)), relation


def _render_chunk(
    seed: int, chunk: int, size: int, shares: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng((seed, chunk))
    scenes = [sample_scene(rng, shares=shares) for _ in range(_CHUNK)]
    rows, grounds, relations = zip(*map(label, scenes), strict=True)
    return (
        np.stack([render(s, size) for s in scenes]),
        np.stack(rows),
        np.asarray(grounds, np.int8),
        np.asarray(relations, np.int8),
        [caption(s) for s in scenes],
    )


def build(
    folder: Path,
    count: int,
    seed: int,
    size: int = 64,
    workers: int = 2,
    shares: tuple[float, ...] = COUNT_SHARES,
) -> None:
    """Renders ``count`` scenes into ``folder``, unless the folder already has them.

    Args:
        shares: of scenes with one, two, three and four objects.
    """
    if (folder / "captions.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // _CHUNK)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (chunks * _CHUNK, size, size, 3))
    objects, grounds, relations, captions = [], [], [], []
    with ProcessPoolExecutor(workers) as pool:
        rendered = pool.map(_render_chunk, [seed] * chunks, range(chunks), [size] * chunks, [shares] * chunks)
        for i, (pixels, rows, ground, relation, texts) in enumerate(
            tqdm(rendered, total=chunks, desc="scenes", unit="chunk")
        ):
            images[i * _CHUNK : (i + 1) * _CHUNK] = pixels
            objects.append(rows)
            grounds.append(ground)
            relations.append(relation)
            captions += texts
    images.flush()
    np.savez(
        folder / "labels.npz",
        objects=np.concatenate(objects),
        backgrounds=np.concatenate(grounds),
        relations=np.concatenate(relations),
    )
    (folder / "captions.json").write_text(json.dumps(captions))


def load(folder: Path) -> SceneData:
    """Opens a set of :func:`build`; images stay on disk until they are accessed."""
    labels = np.load(folder / "labels.npz", allow_pickle=False)
    return SceneData(
        images=np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False),
        objects=labels["objects"],
        backgrounds=labels["backgrounds"],
        relations=labels["relations"],
        captions=json.loads((folder / "captions.json").read_text()),
    )
