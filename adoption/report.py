"""The report of an adoption: one HTML page that explains what was measured, chosen and is still weak."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import PackageLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from PIL import Image

from adoption.context import Context
from adoption.discriminators import CLIP, CONVOLUTIONAL, MATCHING, OWN, PIXELS
from adoption.images import Round
from adoption.measuring import FRECHET_SHARES
from adoption.ranking import SHARES, Figures
from adoption.weak_points import weak_points
from quality.calibration import Calibration, Choice
from traces.page import inline, render
from traces.plots import COLOURS, svg
from weir.files import written_whole

REPORT = "report.html"
#: Pairs of images on the page for each lighter variant, and their side in pixels.
_SHOWN, _PIXELS = 12, 224
#: What each candidate is, in words.
ABOUT = {
    OWN: "the discriminator that the family file names",
    CLIP: "cosine of image and prompt by the family's CLIP; not trained",
    MATCHING: "compares the prompt with what the CLIP sees of the image",
    PIXELS: "compares the prompt with the image's pixels",
    CONVOLUTIONAL: "DiffServe's kind: tells light from heavy images, without the prompt",
}
_LINES = {OWN: "cache", CLIP: "deadline", MATCHING: "good", PIXELS: "medium", CONVOLUTIONAL: "bad"}


@dataclass(frozen=True, slots=True)
class PairShown:
    """A light and a heavy image of one prompt on the page."""

    prompt: str
    light: str
    heavy: str
    confidence: float
    light_score: float
    heavy_score: float


@dataclass(frozen=True, slots=True)
class VariantPart:
    """What the page says of one lighter variant."""

    key: str
    name: str
    chosen: str
    about: str
    figures: Figures
    rows: list[tuple[str, str, Figures, float]]
    quality: Markup
    learning: Markup | None
    pairs: list[PairShown]
    choice: Choice
    heavy: float
    light: float
    frechet: list[tuple[float, float]]


def write_report(context: Context, out: Path, written: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
        written: result of :func:`adoption.service_files.write_files`.
    """
    parts = [_part(context, key) for key in context.lighter]
    shares = [context.results.seconds.get(stage, 0.0) for stage in _TIMED]
    page = render(
        "adoption.html.j2",
        PackageLoader("adoption", "."),
        title=f"Adoption of {context.family.name}",
        family=context.family,
        last=context.last,
        prompts=len(context.prompts),
        measure=context.choices.measure_name,
        device=context.done("check")["device"],
        replicas=context.choices.replicas,
        images=context.done("images")["images"],
        seconds=sum(shares),
        stages=[(name, s) for name, s in zip(_TIMED, shares, strict=True)],
        parts=parts,
        written=written,
        demands=written["demands"],
        ladder=context.done("ladder"),
        cache=context.done("cache"),
        levels=context.done("levels"),
        weak=[point for part in parts for point in weak_points(context, part.key)],
        keep=context.choices.keep,
    )
    with written_whole(out / REPORT) as draft:
        draft.write_text(page, encoding="utf-8")


#: Stages whose time the page shows.
_TIMED = (
    *("check", "measure", "profile", "images", "scores", "discriminators"),
    *("calibration", "cache", "levels", "ladder"),
)


def _part(context: Context, key: str) -> VariantPart:
    found, pair = context.done("discriminators")[key], context.pair(key)
    figures = {name: Figures.from_dict(it) for name, it in found["candidates"].items()}
    chosen = found["chosen"]
    calibrated = context.done("calibration")["variants"][key]
    curve = Calibration(tuple(found["confidences"]), tuple(calibrated["quality"]["values"]))
    learning = found["learning"]
    frechet = context.done("scores")["frechet"].get(key, [])
    return VariantPart(
        key,
        context.family.variants[key].name,
        chosen,
        ABOUT[chosen],
        figures[chosen],
        [(name, ABOUT[name], it, found["candidates"][name]["ms"]) for name, it in figures.items()],
        _plot(f"quality-{key}", lambda ax: _quality(ax, figures, chosen, found, context.choices.measure)),
        _plot(f"learning-{key}", lambda ax: _learning(ax, learning)) if learning else None,
        _pairs(context, key, np.array(found["confidences"])),
        curve.least(context.choices.keep),
        float(pair.heavy.mean()),
        float(pair.light.mean()),
        list(zip(FRECHET_SHARES, frechet, strict=False)),
    )


def _plot(name: str, fill: Callable[[Axes], None]) -> Markup:
    return inline(svg(name, fill))


def _quality(ax: Axes, figures: Mapping[str, Figures], chosen: str, found: Mapping[str, Any], measure: str) -> None:
    percent = [100 * share for share in SHARES]
    ax.plot(percent, found["oracle"], color=COLOURS["muted"], lw=1.4, ls=(0, (4, 3)), label="best possible")
    for name, it in figures.items():
        wide = name == chosen
        ax.plot(percent, it.curve, color=COLOURS[_LINES[name]], lw=2.4 if wide else 1.3, label=name)
    ax.plot(percent, found["random"], color=COLOURS["muted"], lw=1.2, ls=(0, (1, 2)), label="random")
    ax.set(xlabel="light images, %", ylabel=measure.split(":")[-1], xlim=(0, 100))
    _legend(ax)


def _learning(ax: Axes, rows: list[dict[str, Any]]) -> None:
    prompts = [row["prompts"] for row in rows]
    ax.plot(
        prompts,
        [np.nan if row["auc"] is None else row["auc"] for row in rows],
        "o-",
        color=COLOURS["good"],
        lw=2,
        label="area under the curve",
    )
    ax.plot(prompts, [row["gain"] for row in rows], "o-", color=COLOURS["heavy"], lw=2, label="share of possible gain")
    ax.set(xlabel="prompts that it was trained on", xlim=(0, None), ylim=(None, 1))
    _legend(ax)


def _legend(ax: Axes) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, borderaxespad=0.2, handlelength=1.2, fontsize=8)


def _pairs(context: Context, key: str, confidence: np.ndarray) -> list[PairShown]:
    """Pairs at equal steps of the rank by confidence, the least confident first."""
    order = np.argsort(confidence, kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().astype(int)].tolist()
    pair = context.pair(key)
    light = context.images(Round(key)).read(picked)
    heavy = context.images(Round(context.last)).read(picked)
    return [
        PairShown(
            context.prompts[i],
            _source(a),
            _source(b),
            float(confidence[i]),
            float(pair.light[i]),
            float(pair.heavy[i]),
        )
        for i, a, b in zip(picked, light, heavy, strict=True)
    ]


def _source(image: Image.Image) -> str:
    image.thumbnail((_PIXELS, _PIXELS))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
