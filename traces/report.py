"""The report of a replay: ``report.json``, ``plots/*.svg`` and one self-contained ``report.html``."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from traces.figures import Summary, summarise
from traces.outcome import Outcome, save_outcomes
from traces.page import inline, render
from traces.plots import draw_plots
from traces.replay import ROWS
from weir.core import Path as Route
from weir.errors import ConfigError
from weir.files import written_whole

#: (prompts, their images) → one quality each, higher is better.
Scorer = Callable[[list[str], list[Image.Image]], Sequence[float]]

#: Pictures of each path on the page, and the side they are shrunk to, pixels: a page stays a few MB.
_GALLERY, _SIDE = 14, 256

_PATHS = {
    Route.LIGHT: ("light", "The discriminator found the light image good enough."),
    Route.LIGHT_DEADLINE: ("deadline", "Deferred, but the heavy image could not make the deadline."),
    Route.HEAVY: ("heavy", "Deferred, and drawn by the heavy variant."),
    Route.CACHE: ("cache", "The heavy variant went on from a stored state of a similar prompt."),
}
_TITLES = {
    "demand": "Demand and goodput",
    "latency": "Latency of each image",
    "paths": "Path through the cascade",
    "violations": "Violations of the SLO",
    "confidence": "Confidence",
    "quality": "Quality",
}


@dataclass(frozen=True, slots=True)
class _Card:
    """One picture of the gallery."""

    source: str
    outcome: Outcome
    met: bool


def write_report(
    outcomes: Sequence[Outcome],
    out: Path | str,
    *,
    slo_s: float,
    title: str = "Replay",
    about: Mapping[str, str] | None = None,
    duration_s: float | None = None,
    planned: int | None = None,
    window_s: float | None = None,
    scorer: Scorer | None = None,
) -> Summary:
    """Writes the report of a replay into its folder and returns its figures.

    Args:
        out: the folder of the replay, where ``images/`` lies; earlier reports in it are replaced.
        about: what else the page says at its foot, e.g. {"trace": "bursty.csv", "rate scale": "0.5"}.
        duration_s, planned, window_s: as :func:`traces.figures.summarise`.
        scorer: is shown every kept image at once; the qualities also go into ``requests.csv``.

    Raises:
        ConfigError: slo_s or window_s is not positive, the scorer did not give every image a finite quality, or a file
            cannot be written.
    """
    out = Path(out)
    for name, value in (("slo_s", slo_s), ("window_s", window_s)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be above 0")
    out.mkdir(parents=True, exist_ok=True)
    if scorer is not None:
        outcomes = _scored(outcomes, out, scorer)
        save_outcomes(outcomes, out / ROWS)
    summary = summarise(outcomes, slo_s, duration_s=duration_s, planned=planned, window_s=window_s)
    plots = draw_plots(summary, outcomes)
    (out / "plots").mkdir(exist_ok=True)
    for name, svg in plots.items():
        with written_whole(out / "plots" / f"{name}.svg") as draft:
            draft.write_text(svg, encoding="utf-8")
    figures = {"title": title, "about": dict(about or {}), **asdict(summary)}
    with written_whole(out / "report.json") as draft:
        draft.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    page = render(
        "report.html.j2",
        title=title,
        about=dict(about or {}),
        summary=summary,
        total=summary.total,
        plots=[(_TITLES[name], inline(svg)) for name, svg in plots.items()],
        gallery=[(route, *_PATHS[route], _cards(outcomes, out, route, slo_s)) for route in Route],
    )
    with written_whole(out / "report.html") as draft:
        draft.write_text(page, encoding="utf-8")
    return summary


def _scored(outcomes: Sequence[Outcome], out: Path, scorer: Scorer) -> list[Outcome]:
    seen = [(i, image) for i, o in enumerate(outcomes) if (image := _open(o, out)) is not None]
    scored = list(outcomes)
    if not seen:
        return scored
    qualities = scorer([outcomes[i].prompt for i, _ in seen], [image for _, image in seen])
    if len(qualities) != len(seen):
        raise ConfigError(f"the scorer gave {len(qualities)} qualities for {len(seen)} images; it must give one each")
    for (i, _), quality in zip(seen, qualities, strict=True):
        if not np.isfinite(quality):
            raise ConfigError(f"the scorer gave {quality} for {outcomes[i].image}; a quality must be finite")
        scored[i] = replace(scored[i], quality=float(quality))
    return scored


def _open(outcome: Outcome, out: Path) -> Image.Image | None:
    """The kept image; None when none was kept or it is no picture (an emulated worker may send a placeholder)."""
    if not outcome.image:
        return None
    try:
        with Image.open(out / outcome.image) as image:
            return image.convert("RGB")
    except (FileNotFoundError, UnidentifiedImageError):
        return None


def _cards(outcomes: Sequence[Outcome], out: Path, route: Route, slo_s: float) -> list[_Card]:
    """Pictures from the least to the most confident, evenly picked among all of the path."""
    kept = [o for o in outcomes if o.path is route and o.image]
    kept.sort(key=lambda o: (o.confidence if o.confidence is not None else -1.0, o.index))
    picked = np.linspace(0, len(kept) - 1, min(_GALLERY, len(kept))).round().astype(int)
    cards = []
    for i in picked.tolist():
        image = _open(kept[i], out)
        if image is not None:
            image.thumbnail((_SIDE, _SIDE))
            data = io.BytesIO()
            image.save(data, "WEBP", quality=88)
            source = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
            cards.append(_Card(source, kept[i], kept[i].met(slo_s)))
    return cards
