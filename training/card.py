"""Writes the model card: figures, plots and a contact sheet of an evaluation, on a Markdown page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from training.evaluate import STEPS, held_out
from training.scenes import caption
from weir.files import written_whole

_LINES = {
    "oracle": ("oracle", "#8a8f98", "--"),
    "discriminator": ("discriminator", "#0f766e", "-"),
    "clip": ("CLIP score", "#b45309", "-."),
    "random": ("random", "#94a3b8", ":"),
}
_PICTURES = ("contact.png", "quality_by_share.png", "quality_by_steps.png")


def write_plots(out: Path) -> None:
    """Plots the evaluation in ``out`` and writes the pictures to the same folder."""
    figures = json.loads((out / "evaluation.json").read_text())
    with np.load(out / "images.npz", allow_pickle=False) as images:
        _contact_sheet(out / "contact.png", {name: images[name] for name in images.files}, figures["prompts"])
    plot_by_share(out / "quality_by_share.png", figures["light_share"], figures["quality"], "attributes")
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    rows = [figures["rows"][f"heavy ({n} steps)"] for n in STEPS]
    for n in range(1, 5):
        axes[0].plot(STEPS, [r[f"attributes_{n}"] for r in rows], "o-", label=f"{n} object{'s' * (n > 1)}", linewidth=2)
    _label(axes[0], "denoising steps of the heavy variant", "attributes, higher is better")
    axes[1].plot(STEPS, [r["frechet"] for r in rows], "o-", color="#0f766e", label="heavy", linewidth=2)
    axes[1].axhline(figures["rows"]["real"]["frechet"], color="#94a3b8", linestyle=":", label="real against real")
    _label(axes[1], "denoising steps of the heavy variant", "Fréchet distance, lower is better")
    fig.savefig(out / "quality_by_steps.png", dpi=130)
    plt.close(fig)


def plot_by_share(path: Path, shares: Sequence[float], quality: Mapping[str, Sequence[float]], measure: str) -> None:
    """Plots the quality of mixes against the share of light images, by the order in which images stay light.

    Args:
        quality: by the name of the order; the plot has those of :data:`_LINES` that are in it.
        measure: of the quality, higher is better.
    """
    fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, (label, colour, style) in _LINES.items():
        if name in quality:
            ax.plot(shares, quality[name], style, color=colour, label=label, linewidth=2)
    _label(ax, "share answered by the light variant", f"{measure}, higher is better")
    fig.savefig(path, dpi=130)
    plt.close(fig)


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)


def _contact_sheet(path: Path, images: dict[str, np.ndarray], count: int, columns: int = 8) -> None:
    """Eight prompts per block, two of each object count, in rows: light, heavy with 5 steps, heavy with 50 steps.

    Two blocks, or one of fewer than 16 prompts.
    """
    prompts = [caption(s) for s in held_out(count)]
    kinds = {"light": "light", "heavy_5": "heavy, 5 steps", "heavy_50": "heavy, 50 steps"}
    blocks = min(2, count // columns)
    fig, axes = plt.subplots(blocks * len(kinds), columns, figsize=(1.55 * columns, 1.66 * blocks * len(kinds)))
    for block in range(blocks):
        for line, (name, label) in enumerate(kinds.items()):
            for column in range(columns):
                i = block * columns + column
                ax = axes[block * len(kinds) + line, column]
                ax.imshow(images[name][i], interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
                if line == 0:
                    ax.set_title(_wrap(prompts[i]), fontsize=6, pad=3)
                if column == 0:
                    ax.set_ylabel(label, fontsize=7)
    fig.tight_layout(pad=0.4, h_pad=0.3, w_pad=0.2)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _wrap(text: str, width: int = 34) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _routing(figures: dict[str, Any]) -> str:
    """Compares routing by the discriminator with random routing, except at shares 0 and 1, where they are the same."""
    quality = figures["quality"]
    by_share = list(zip(figures["light_share"], quality["discriminator"], quality["random"], strict=True))[1:-1]
    worse = [f"{share:.0%}" for share, discriminator, random in by_share if discriminator <= random]
    return (
        f"no better than random at light shares of {', '.join(worse)}" if worse else "above random at every light share"
    )


def write_card(out: Path, folder: Path) -> None:
    """Copies the pictures of the evaluation in ``out`` to ``folder`` and writes its README.md."""
    figures: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    rows = []
    for name, row in figures["rows"].items():
        cells = [f"{row['frechet']:.2f}", f"{row['clip']:.3f}", f"{row['attributes']:.3f}", f"{row['exact']:.3f}"]
        rows.append(
            f"| {name} | "
            + " | ".join(cells + [f"{row[f'attributes_{n}']:.2f} ({row[f'exact_{n}']:.2f})" for n in range(1, 5)])
            + " |"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PICTURES:
        shutil.copyfile(out / name, folder / name)
    text = (
        (Path(__file__).parent / "model_card.md")
        .read_text()
        .format(
            prompts=figures["prompts"],
            rows="\n".join(rows),
            as_good=figures["light_at_least_as_good"],
            auc=figures["discriminator_auc"],
            clip_auc=figures["clip_auc"],
            good=figures["light_good_enough"],
            routing=_routing(figures),
            **{f"heavy_{n}": figures["rows"]["heavy (50 steps)"][f"exact_{n}"] for n in (1, 2, 4)},
        )
    )
    with written_whole(folder / "README.md") as draft:
        draft.write_text(text)
