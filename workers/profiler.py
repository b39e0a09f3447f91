"""Measures a family on this device and writes its profile (``weir profile``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

from weir.config import FamilyConfig
from weir.core import ImageRequest, ImageSize
from weir.errors import ConfigError, WeirError
from weir.files import make_folder, written_whole
from weir.profiles import BatchTimes, FixedCosts, Profile, VariantProfile
from workers.engine.engine import DenoiseJob, Engine, OutOfMemory, Sample, denoise_job

#: Called after every measured batch with the number of finished batches, their total, and a label of the last one.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a profile measures.

    Attributes:
        batch_sizes: batch sizes to measure, each at least 1.
        repeats: number of measured runs of each batch size.
        prompts: held-out prompts; the batches use them in turn, and each gives one confidence of every variant.
        sizes: sizes of images to measure besides the family's own; times of others are interpolated by pixels.
        judge_last: also measures confidences of the last variant, on which redraws depend. It takes one run of the
            last variant for every prompt.
    """

    batch_sizes: Sequence[int]
    repeats: int
    prompts: Sequence[str]
    sizes: Sequence[ImageSize] = ()
    judge_last: bool = False

    def check(self, family: FamilyConfig) -> None:
        """Checks that a family can be measured so.

        Raises:
            ConfigError: names the field.
        """
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ConfigError(f"batch_sizes is {list(self.batch_sizes)}; give at least one, each at least 1")
        if self.repeats < 1:
            raise ConfigError(f"repeats is {self.repeats}; it must be at least 1")
        if not self.prompts:
            raise ConfigError("prompts is empty; a profile needs at least one prompt")
        for size in self.sizes:
            if size not in family.allowed_sizes:
                raise ConfigError(f"sizes has {size}; {family.name} allows {family.allowed_sizes}")


def profile_family(
    family: FamilyConfig,
    wanted: Measurements,
    progress: Progress | None = None,
    *,
    engine: Engine | None = None,
    threads: int = 1,
) -> Profile:
    """Measures the median seconds per batch and per step of every variant, and the confidence for every prompt.

    Each batch size runs once unmeasured before its repeats. A size that does not fit the device's memory ends the
    variant's list of sizes. The seed of prompt i is i, so that two profiles of one family are comparable. Fixed costs
    are measured per image in the largest batch, with prompts that are not in the encoder's cache.

    Args:
        engine: a loaded family to reuse; None loads it.
        threads: number of torch's threads on the CPU; a replica uses 1.

    Raises:
        ConfigError: an argument is invalid, the family cannot be loaded, or the smallest batch does not fit.
    """
    wanted.check(family)
    batches, repeats, prompts = sorted(set(wanted.batch_sizes)), wanted.repeats, wanted.prompts
    others = [size for size in dict.fromkeys(wanted.sizes) if size != family.size]
    if engine is None:
        from workers.models.family import Family

        engine = Family.load(family, threads=threads)
    judged = family.keys if wanted.judge_last else family.keys[:-1]
    runs = len(family.keys) * len(batches) * (1 + len(others)) * (repeats + 1)
    report = _ProgressReporter(progress, total=runs + len(judged) * -(-len(prompts) // batches[-1]))
    measured = _Measurement(engine, family, batches, repeats, prompts, report, count())
    variants = {key: measured.variant(key, others) for key in family.keys}
    for key in judged:
        confidences = _confidences(engine, family, key, prompts, variants[key].batch_sizes[-1], report)
        variants[key] = variants[key].model_copy(update={"confidences": confidences})
    return Profile(family=family.name, device=_device(engine), size=family.size, variants=variants)


def write_profile(profile: Profile, path: Path | str) -> None:
    """Writes the profile to a file atomically, and creates its folder if necessary.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    with written_whole(path) as draft:
        draft.write_text(profile.model_dump_json(indent=1) + "\n")


class _ProgressReporter:
    """Counts finished batches and reports them."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total), what)


class _Timed(NamedTuple):
    """Seconds of one batch: the whole batch, one step, and the fixed costs of one image."""

    whole: float
    step: float
    text: float
    decode: float
    png: float


class _Measurement(NamedTuple):
    """What is measured, and how."""

    engine: Engine
    family: FamilyConfig
    batches: Sequence[int]
    repeats: int
    prompts: Sequence[str]
    report: _ProgressReporter
    runs: Iterator[int]

    def variant(self, key: str, others: Sequence[ImageSize]) -> VariantProfile:
        """Times of a variant at the family's own size and at others; one of which no image fits is left out."""
        variant, own = self.family.variants[key], self.family.size
        timed = self._timed(key, [own, *others])
        if not timed[own]:
            raise ConfigError(
                f"family {self.family.name}: a batch of {self.batches[0]} images of {variant.name} does not fit; "
                "use smaller batches"
            )
        found = {size: self._times(key, size, batches) for size, batches in timed.items() if batches}
        return VariantProfile(name=variant.name, steps=variant.steps, **dict(found.pop(own)), sizes=found)

    def _timed(self, key: str, sizes: Sequence[ImageSize]) -> dict[ImageSize, dict[int, _Timed]]:
        """Times by size and by batch size, as far as they fit into the memory.

        The sizes take turns, so that what else the machine does slows all of them alike.
        """
        measured: dict[ImageSize, dict[int, _Timed]] = {size: {} for size in sizes}
        fitting = list(sizes)
        for batch in self.batches:
            runs: dict[ImageSize, list[_Timed]] = {size: [] for size in fitting}
            for _, size in product(range(self.repeats + 1), sizes):
                if size not in fitting:
                    continue
                label = f"{self.family.variants[key].name} × {batch}"
                label += "" if size == self.family.size else f" at {size}"
                # a number of their own keeps the prompts of every run out of the encoder's cache
                run = next(self.runs)
                worded = [f"{self.prompts[j % len(self.prompts)]} {run}" for j in range(batch)]
                try:
                    jobs = [denoise_job(self.family, key, it) for it in _requests(size, worded, 0)]
                    runs[size].append(_run(self.engine, jobs))
                    self.report(label)
                except OutOfMemory:
                    self.report(f"{label}: out of memory")
                    fitting.remove(size)
            for size in fitting:
                measured[size][batch] = _Timed(*map(statistics.median, zip(*runs[size][1:], strict=True)))
        return measured

    def _times(self, key: str, size: ImageSize, measured: Mapping[int, _Timed]) -> BatchTimes:
        """What the profile holds of one size."""
        batch, largest = list(measured.items())[-1]
        last = key == self.family.keys[-1]
        judging_s = 0.0 if last else _judging_s(self.engine, key, size, self.prompts, batch, self.repeats)
        return BatchTimes(
            batch_sizes=tuple(measured),
            latency_s=tuple(m.whole for m in measured.values()),
            step_s=tuple(m.step for m in measured.values()),
            fixed=FixedCosts(
                text_s=largest.text,
                decode_s=max(0.0, largest.decode - judging_s),
                discriminator_s=judging_s,
                png_s=largest.png,
            ),
        )


def _confidences(
    engine: Engine, family: FamilyConfig, key: str, prompts: Sequence[str], batch: int, report: _ProgressReporter
) -> tuple[float, ...]:
    """Confidence of the variant's judge in the image of every prompt; empty without a judge."""
    found: list[float] = []
    for start in range(0, len(prompts), batch):
        requests = [replace(it, judge=True) for it in _requests(family.size, prompts[start : start + batch], start)]
        found += [it.confidence for it in engine.generate(key, requests) if it.confidence is not None]
        report(f"confidences of {family.variants[key].name}")
    return tuple(found)


def _judging_s(engine: Engine, key: str, size: ImageSize, prompts: Sequence[str], batch: int, repeats: int) -> float:
    """Median seconds that the variant's judge takes for one image of a batch; 0 without a judge."""
    discriminator = getattr(engine, "judges", {}).get(key)
    if discriminator is None:
        return 0.0
    import torch

    images, taken = torch.zeros(batch, 3, size.height, size.width), []
    chosen = [prompts[i % len(prompts)] for i in range(batch)]
    for _ in range(repeats + 1):
        started = time.perf_counter()
        discriminator.confidence(images, chosen)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:]) / batch


def _run(engine: Engine, jobs: Sequence[DenoiseJob]) -> _Timed:
    """Generates one batch and times its parts.

    Raises:
        ConfigError: an image failed.
        OutOfMemory: the batch does not fit.
    """
    started = time.perf_counter()
    samples = [_checked_sample(begun) for begun in engine.begin(jobs)]
    begun, steps = time.perf_counter(), []
    while samples[0].step < jobs[0].recipe.steps:
        before, step = time.perf_counter(), samples[0].step
        for error in engine.step(samples):
            if error is not None:
                raise ConfigError(f"the family generates no image: {error.message}")
        steps.append((time.perf_counter() - before) / (samples[0].step - step))
    stepped = time.perf_counter()
    outputs = engine.finish(samples)
    decoded = time.perf_counter()
    for output in outputs:
        if (reason := output.result().error) is not None:
            raise ConfigError(f"the family generates no image: {reason[1]}")
    ended, size = time.perf_counter(), len(jobs)
    return _Timed(
        ended - started,
        statistics.median(steps),
        (begun - started) / size,
        (decoded - stepped) / size,
        (ended - decoded) / size,
    )


def _checked_sample(begun: Sample | WeirError) -> Sample:
    if isinstance(begun, WeirError):
        raise ConfigError(f"the family generates no image: {begun.message}")
    return begun


def _requests(size: ImageSize, prompts: Sequence[str], first_seed: int) -> list[ImageRequest]:
    return [
        ImageRequest(f"profile-{i}", prompt, i, size, deadline=float("inf"))
        for i, prompt in enumerate(prompts, first_seed)
    ]


def _device(engine: Engine) -> str:
    """Name of the kind of device that the profile is valid for."""
    device = getattr(engine, "device", None)
    if device is None:
        return "emulated"
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
