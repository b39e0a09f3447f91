"""The first stages of an adoption: checks the weights, profiles the variants, and generates and scores all images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from adoption.context import Context
from adoption.images import BATCH, DrawnImages, Round, draw
from adoption.scores import array_in, scores_of
from quality.frechet import frechet_distance
from quality.inception import InceptionFeatures
from quality.suite import INCEPTION, AttributeJudge, Extractor, read_pictures, tensors
from weir.config import FamilyConfig
from weir.errors import ConfigError
from weir.profiles import Profile
from workers.models.checkpoint import check_family
from workers.profiler import Measurements, profile_family

#: Light shares at which the Fréchet distance of a mix is measured.
FRECHET_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def fingerprint(family: FamilyConfig) -> dict[str, Any]:
    """Identifies the weights of a family without reading them: sizes and times of local files, revisions of others."""
    named = [family.pipeline, family.checkpoint, family.vae, family.clip, *family.textual_inversions.values()]
    named += [it.file for it in family.adapters.values()]
    for variant in family.variants.values():
        named += [variant.pipeline, variant.checkpoint, variant.unet, variant.inpainting, variant.discriminator_folder]
    return {name: _files(Path(name)) for name in sorted({it for it in named if it is not None and it.startswith("/")})}


def _files(path: Path) -> list[Any]:
    files = sorted(it for it in path.rglob("*") if it.is_file()) if path.is_dir() else [path]
    stats = [it.stat() for it in files if it.suffix in (".safetensors", ".json", ".txt")]
    return [len(stats), sum(it.st_size for it in stats), max((it.st_mtime_ns for it in stats), default=0)]


def check(context: Context) -> dict[str, Any]:
    """Checks the weights, loads them, and generates one image by every variant."""
    family, keys = context.family, context.family.keys
    check_family(family)
    models, seconds = context.engine.models, {}
    for done, key in enumerate(keys):
        context.report("first images", done, len(keys))
        started = time.perf_counter()
        draw(context.engine, context.plain, context.prompts, _first_image(context, key), 1)
        seconds[key] = time.perf_counter() - started
    context.report("first images", len(keys), len(keys))
    return {"models": dict(models), "seconds_per_image": seconds, "device": context.device}


def try_measure(context: Context) -> dict[str, Any]:
    """Scores the first images by the measure, before hours go into images that it cannot judge."""
    found = {}
    for key in context.family.keys:
        images = _first_image(context, key)
        file = context.results.folder("measure") / f"{key}.npy"
        found[key] = float(scores_of(context.judge, images, [(0, context.prompts[0])], file)[0])
    return {"scores": found}


def _first_image(context: Context, key: str) -> DrawnImages:
    return DrawnImages(context.results.folder("check"), Round(key), 1)


def profile(context: Context) -> dict[str, Any]:
    """Measures seconds per batch and per step of every variant; confidences are measured later."""
    batches = context.choices.batch_sizes
    found = profile_family(
        context.plain,
        Measurements(batches, 3, context.prompts[: max(batches)]),
        lambda done, total, what: context.report(f"profile: {what}", done, total),
        engine=context.engine,
    )
    return found.model_dump(mode="json")


def images(context: Context) -> dict[str, Any]:
    """Generates every prompt in all rounds."""
    times = Profile.model_validate(context.done("profile"))
    rounds = context.rounds
    for number, round_ in enumerate(rounds, 1):
        title = f"images {number}/{len(rounds)}: {round_.name}"
        batch = times.variants[round_.variant].batch_sizes[-1]
        draw(
            context.engine,
            context.plain,
            context.prompts,
            context.images(round_),
            batch,
            lambda done, total, title=title: context.report(title, done, total),  # type: ignore[misc]
        )
    return {"rounds": [round_.name for round_ in rounds], "images": len(rounds) * len(context.prompts)}


def seconds_left(context: Context) -> float:
    """Estimated seconds of the stage ``images``, from the measured times."""
    times, seconds = Profile.model_validate(context.done("profile")), 0.0
    for round_ in context.rounds:
        of = times.variants[round_.variant]
        each = of.latency_s[-1] / of.batch_sizes[-1] * (of.work(round_.steps) if round_.steps else 1.0)
        seconds += each * len(context.images(round_).missing())
    return seconds


def scores(context: Context) -> dict[str, Any]:
    """Scores all images by the measure, and the sets of them by the Fréchet distance where there are references."""
    folder, means = context.results.folder("scores"), {}
    for round_ in context.rounds:
        own = list(enumerate(context.prompts))
        found = scores_of(
            context.judge,
            context.images(round_),
            own,
            folder / f"{round_.name}.npy",
            lambda done, total, name=round_.name: context.report(f"scores: {name}", done, total),  # type: ignore[misc]
        )
        means[round_.name] = float(found.mean())
    if (best := means[Round(context.last).name]) <= 0:
        raise ConfigError(
            f"{context.choices.measure_name}: the mean score of {context.last} is {best:.3g}; "
            "quality is stated as a share of it, so use a measure whose scores are above 0"
        )
    return {"means": means, "frechet": frechet_by_share(context, folder)}


def frechet_by_share(context: Context, folder: Path) -> dict[str, list[float]]:
    """Fréchet distance of random mixes of each lighter variant with the last one, at :data:`FRECHET_SHARES`."""
    if context.choices.reference is None:
        return {}
    extractor = _extractor(context)
    pictures = read_pictures(context.choices.reference)
    real = _features(extractor, pictures)

    def features(round_: Round) -> np.ndarray:
        drawn = context.images(round_)
        return array_in(
            folder / f"features-{round_.name}.npy",
            lambda: np.concatenate([_features(extractor, drawn.read(part)) for part in drawn.parts()]),
        )

    heavy, order = features(Round(context.last)), np.random.default_rng(0).permutation(len(context.prompts))
    found: dict[str, list[float]] = {}
    for key in context.lighter:
        light, found[key] = features(Round(key)), []
        for share in FRECHET_SHARES:
            stays = np.isin(np.arange(len(order)), order[: round(share * len(order))])
            found[key].append(frechet_distance(np.where(stays[:, None], light, heavy), real))
    return found


def _extractor(context: Context) -> Extractor:
    """The checker of a family that has one, which knows its images; else Inception-v3."""
    if isinstance(context.judge, AttributeJudge):
        return context.judge.checker
    return InceptionFeatures.load(INCEPTION)


def _features(extractor: Extractor, pictures: Any) -> np.ndarray:
    parts = [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]
    return np.concatenate([extractor.features(tensors(part)).numpy() for part in parts])
