"""Compares the step loop with diffusers' own pipeline on the same family, requests, device and number of threads.

    python -m benchmarks.engine                                    # the embedded family on the CPU
    python -m benchmarks.engine --sdxl                             # SDXL's architecture, random weights, 1024 px, CUDA

Both sides generate the same images from prompt to PNG in turn, so that other load on the machine affects both equally;
a figure is the median of the ratios of the rounds. On CUDA use the wall time. On the CPU, where both sides use one
thread, use the processor time, which excludes other processes.

The pipeline serves a mixed load (every image has its own number of remaining steps) in three ways: every image from
step 0, in full batches; resumed, in batches of the oldest waiting image and the waiting images with the same K, with a
queue as long as the batch; and resumed with all images known in advance and sorted by K, which no server can do.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from rich.console import Console
from rich.table import Table

from benchmarks import command
from weir.config import FamilyConfig, load_family
from weir.core import ImageRequest, Overrides, Resume
from weir.states import State
from workers.engine.engine import DenoiseJob, Engine, denoise_job, recipe
from workers.engine.image_decoder import to_png
from workers.engine.samplers import TCD_GAMMA, scheduler_for
from workers.engine.scheduler_settings import SAMPLERS, unsupported
from workers.engine.step_loop import StepLoop, StepProgress, TaskOutcome
from workers.models.architectures.architecture import Pipeline
from workers.models.family import Family
from workers.models.weights import load_pipelines

#: Shares of K = 0, 5, 10, 15, 20 and 25 of 50 steps among the requests of NIRVANA's and Argus' published logs.
SHARES = (0.225, 0.426, 0.213, 0.046, 0.032, 0.059)
LEVELS = (0, 5, 10, 15, 20, 25)
#: Components of a pipeline that text to image does not use.
_UNUSED = ("feature_extractor", "image_encoder")
PROMPTS = ("a red circle above a blue square", "a green triangle", "two yellow stars", "a large pink heart on gray")


class Duration(NamedTuple):
    """Wall time, and processor time of this process on all processors, seconds."""

    wall_s: float
    processor_s: float


class Bench:
    """One family twice: in the engine, and as unmodified diffusers pipelines."""

    def __init__(self, config: FamilyConfig, engine: Family, pipeline: Pipeline):
        self.config, self.engine, self.pipeline = config, engine, pipeline
        pipeline.scheduler = scheduler_for(config.heavy.scheduler, pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)
        parts = {k: v for k, v in pipeline.components.items() if k not in _UNUSED}
        self.resumer = StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
        self.resumer.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.size = config.heavy.steps, config.heavy.guidance, config.size

    def requests(self, count: int, **fields: Any) -> list[ImageRequest]:
        return [
            ImageRequest(f"r{i}", PROMPTS[i % len(PROMPTS)], i, self.size, deadline=float("inf"), **fields)
            for i in range(count)
        ]

    def states(self, count: int) -> list[dict[int, State]]:
        """Returns the captured states of ``count`` requests, by step."""
        outputs = []
        for start in range(0, count, 8):
            outputs += self.engine.generate("heavy", self.requests(count, capture="bench")[start : start + 8])
        return [{state.step: state for state in output.states} for output in outputs]

    # ---------------------------------------------------------------------------------------- diffusers

    def noise(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        unet, factor = self.pipeline.unet, self.pipeline.vae_scale_factor
        shape = (unet.config.in_channels, self.size.height // factor, self.size.width // factor)
        noise = [torch.randn(shape, generator=it) for it in generators]
        return torch.stack(noise).to(unet.device, unet.dtype)

    def piped(self, requests: Sequence[ImageRequest], output: str = "np", **how: Any) -> Any:
        """Runs one batch from step 0 in the pipeline."""
        generators = [torch.Generator().manual_seed(r.seed) for r in requests]
        return self.pipeline(
            prompt=[r.prompt for r in requests],
            latents=self.noise(generators),
            generator=generators,
            height=self.size.height,
            width=self.size.width,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            output_type=output,
            **how,
        ).images

    def resumed(self, requests: Sequence[ImageRequest], states: Sequence[State]) -> Any:
        """Runs one batch of a single K in the pipeline, through ``denoising_start``."""
        scheduler = self.resumer.scheduler
        scheduler.set_timesteps(self.steps)
        share = 1 - (float(scheduler.timesteps[states[0].step]) + 1) / scheduler.config.num_train_timesteps
        latents = torch.from_numpy(np.stack([s.latent for s in states]))
        return self.resumer(
            prompt=[r.prompt for r in requests],
            image=latents.to(self.pipeline.unet.device, self.pipeline.unet.dtype),
            num_inference_steps=self.steps,
            denoising_start=share,
            guidance_scale=self.guidance,
            output_type="np",
        ).images

    def pictures(self, images: Any) -> list[bytes]:
        return [to_png((image * 255).round().astype("uint8")) for image in images]

    # ------------------------------------------------------------------------------------------- engine

    def jobs(self, requests: Sequence[ImageRequest], states: Sequence[State | None] = ()) -> list[DenoiseJob]:
        states = states or [None] * len(requests)
        return [denoise_job(self.config, "heavy", r, s) for r, s in zip(requests, states, strict=True)]

    def looped(self, jobs: Sequence[DenoiseJob], batch: int, ahead: int | None = None) -> list[TaskOutcome]:
        """Runs all jobs through a step loop, as :func:`looped`."""
        return looped(self.engine, jobs, batch, ahead)


def looped(engine: Engine, jobs: Sequence[DenoiseJob], batch: int, ahead: int | None = None) -> list[TaskOutcome]:
    """Runs all jobs through a step loop with batch size ``batch``, with at most ``ahead`` of them unanswered."""
    loop = StepLoop(engine, lambda job: batch)
    outcomes: list[TaskOutcome] = []
    free, done = threading.Semaphore(ahead or len(jobs)), threading.Semaphore(0)

    def answer(outcome: TaskOutcome) -> None:
        outcomes.append(outcome)
        free.release()
        done.release()

    for job in jobs:
        free.acquire()
        loop.submit(job, answer)
    for _ in jobs:
        done.acquire()
    assert all(o.output.error is None for o in outcomes), outcomes[0].output.error
    return outcomes


def seconds(work: Callable[[], object]) -> Duration:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Duration(time.perf_counter() - wall, time.process_time() - processor)


def equality(bench: Bench) -> dict[str, dict[str, float]]:
    """Measures the largest absolute difference of the finished latents from diffusers', batch 1, for each sampler."""
    found: dict[str, dict[str, float]] = {}
    own, base = bench.pipeline.scheduler, bench.engine.pipelines["heavy"].scheduler.config
    names = tuple(name for name in SAMPLERS if not list(unsupported(name, base)))
    engine = Family(bench.config.model_copy(update={"samplers": names}), bench.engine.pipelines)
    for name in names:
        [request] = bench.requests(1, overrides=Overrides(sampler=name))
        bench.pipeline.scheduler = scheduler_for(name, base)
        theirs = bench.piped([request], "latent", **({"eta": TCD_GAMMA} if name == "tcd" else {}))[0]
        ours, states = _latent(engine, denoise_job(engine.config, "heavy", replace(request, capture="bench")))
        differences = {"from step 0": _apart(theirs, ours)}
        exact = 0.0
        for step, latent in states.items():
            resumed, _ = _latent(engine, _resume(bench, engine, request, step, latent))
            exact = max(exact, _apart(ours, resumed))
        found[name] = {**differences, "resumed from float16 at any K": exact, "largest value": float(ours.abs().max())}
    bench.pipeline.scheduler = own
    return found


def _latent(engine: Family, job: DenoiseJob) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    [sample] = engine.begin([job])
    while sample.step < job.recipe.steps:  # type: ignore[union-attr]
        engine.step([sample])  # type: ignore[list-item]
    return sample.latent, dict(sample.kept)  # type: ignore[union-attr]


def _resume(bench: Bench, engine: Family, request: ImageRequest, step: int, latent: torch.Tensor) -> DenoiseJob:
    resumed = replace(request, resume=Resume("-", step))
    sampler = engine.sampler(recipe(engine.config, "heavy", resumed)).id
    state = State(latent.numpy(), step, bench.steps, sampler, engine.models["heavy"])
    return denoise_job(engine.config, "heavy", resumed, state)


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def uniform(bench: Bench, batch: int, rounds: int) -> dict[str, float]:
    """Measures one full batch from step 0: the ratio of the pipeline's time to the engine's."""
    requests = bench.requests(batch)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(seconds(lambda: bench.looped(bench.jobs(requests), batch)))
        theirs.append(seconds(lambda: bench.pictures(bench.piped(requests))))
    return _compared(ours, theirs, batch)


def _compared(ours: Sequence[Duration], theirs: Sequence[Duration], images: int) -> dict[str, float]:
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "engine_s": statistics.median(o.wall_s for o in ours),
        "pipeline_s": statistics.median(t.wall_s for t in theirs),
        "engine_images_per_s": images / statistics.median(o.wall_s for o in ours),
        "speedup_wall": statistics.median(t.wall_s / o.wall_s for o, t in pairs),
        "speedup_processor": statistics.median(t.processor_s / o.processor_s for o, t in pairs),
    }


def mixed(bench: Bench, batch: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Compares a mixed load with batch size ``batch`` in the engine with the three ways of the pipeline."""
    counts = np.diff(np.round(np.cumsum((0, *SHARES)) / sum(SHARES) * count)).astype(int)
    ordered = np.repeat(LEVELS, counts)
    levels = [round(int(k) / 50 * bench.steps) for k in np.random.default_rng(0).permutation(ordered)]
    captured = bench.states(len(levels))
    requests = [
        replace(r, resume=Resume("-", k) if k else None)
        for r, k in zip(bench.requests(len(levels)), levels, strict=True)
    ]
    states = [captured[i].get(k) for i, k in enumerate(levels)]
    work = list(zip(requests, states, strict=True))

    def draw(chosen: Sequence[tuple[ImageRequest, State | None]]) -> None:
        group, starts = [r for r, _ in chosen], [s for _, s in chosen if s is not None]
        bench.pictures(bench.resumed(group, starts) if starts else bench.piped(group))

    def from_scratch() -> None:
        for start in range(0, len(work), batch):
            bench.pictures(bench.piped(requests[start : start + batch]))

    def in_order() -> None:
        ahead = 2 * batch
        waiting, coming = work[:ahead], work[ahead:]
        while waiting:
            chosen = [w for w in waiting if w[0].resume == waiting[0][0].resume][:batch]
            draw(chosen)
            waiting = [w for w in waiting if w not in chosen] + coming[: len(chosen)]
            coming = coming[len(chosen) :]

    def by_level() -> None:
        for level in sorted(set(levels)):
            same = [w for w in work if (w[0].resume.step if w[0].resume else 0) == level]
            for start in range(0, len(same), batch):
                draw(same[start : start + batch])

    ways = {"every image from step 0": from_scratch, "resumed, as they come": in_order, "resumed, sorted": by_level}
    jobs = bench.jobs(requests, states)
    ours: list[Duration] = []
    theirs: dict[str, list[Duration]] = {name: [] for name in ways}
    for _ in range(rounds):
        ours.append(seconds(lambda: bench.looped(jobs, batch, ahead=2 * batch)))
        for name, way in ways.items():
            theirs[name].append(seconds(way))
    return {name: _compared(ours, taken, len(work)) for name, taken in theirs.items()}


def late_arrival(bench: Bench, batch: int, rounds: int) -> dict[str, float]:
    """Measures the wait of an image that arrives while ``batch`` − 1 others run, in steps and as a share of a batch."""
    arrivals = [_arrive(bench, batch, 1 + (7 * n + 3) % (bench.steps // 2)) for n in range(rounds)]
    return {
        "steps_before_its_first_median": statistics.median(passed for passed, _ in arrivals),
        "steps_before_its_first_most": max(passed for passed, _ in arrivals),
        "first_step_done_after_share_of_batch": statistics.median(waited for _, waited in arrivals),
    }


def _arrive(bench: Bench, batch: int, moment: int) -> tuple[int, float]:
    """Sends an image after the others have made ``moment`` steps."""
    loop, jobs = StepLoop(bench.engine, lambda job: batch), bench.jobs(bench.requests(batch))
    arrive, done = threading.Event(), threading.Semaphore(0)
    steps, begun = [0], []  # of the others; (time, their steps) when the late one had made each of its own

    def others(progress: StepProgress) -> None:
        steps[0] = progress.step
        if progress.step == moment:
            arrive.set()

    started = time.perf_counter()
    for job in jobs[:-1]:
        loop.submit(job, lambda outcome: done.release(), others if job is jobs[0] else None)
    arrive.wait()
    came, came_at = time.perf_counter(), steps[0]
    loop.submit(
        jobs[-1], lambda outcome: done.release(), lambda progress: begun.append((time.perf_counter(), steps[0]))
    )
    for _ in jobs[:-1]:
        done.acquire()
    whole = time.perf_counter() - started
    done.acquire()
    first, its_step = begun[0]
    return its_step - came_at - 1, (first - came) / whole  # the step that it was part of itself does not count


def sdxl_family(device: str, size: int, steps: int) -> tuple[FamilyConfig, Pipeline]:
    """Builds SDXL base 1.0's architecture with random weights, to measure speed."""
    from testing.sdxl_architecture import pipeline

    light = {"name": "light", "scheduler": "euler-trailing", "steps": 4, "guidance": 0}
    config = FamilyConfig.model_validate(
        {
            "name": "sdxl-random",
            "pipeline": "none",
            "size": size,
            "device": device,
            "light": light,
            "heavy": {"name": "heavy", "scheduler": "euler", "steps": steps, "guidance": 5.0},
        }
    )
    return config, pipeline(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--sdxl", action="store_true", help="SDXL's architecture with random weights, on CUDA")
    parser.add_argument(
        "--steps", type=int, default=50, help="steps of --sdxl; levels are scaled to this number from 50"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32, help="number of images of the mixed load")
    parser.add_argument("--parts", nargs="+", default=["equality", "uniform", "mixed", "late"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.sdxl:
        if not torch.cuda.is_available():
            parser.exit(2, "benchmarks.engine: --sdxl needs a CUDA device; torch finds none\n")
        config, pipeline = sdxl_family("cuda", 1024, arguments.steps)
        engine = Family(config, dict.fromkeys(config.keys, copy.deepcopy(pipeline)))
    else:
        config = load_family(arguments.family)
        engine = Family.load(config, threads=1)
        pipeline = load_pipelines(config, engine.device, engine.pipelines["heavy"].unet.dtype)["heavy"]
    bench = Bench(config, engine, pipeline)
    bench.looped(bench.jobs(bench.requests(1)), 1)
    bench.piped(bench.requests(1))
    console, figures = Console(width=120), {}
    if "equality" in arguments.parts:
        figures["equality"] = equality(bench)
        table = Table(
            "scheduler", "from step 0", "resumed from float16 at any K", "largest value", title="max |Δ latent|"
        )
        for name, row in figures["equality"].items():
            table.add_row(name, *(f"{v:.2g}" for v in row.values()))
        console.print(table)
    if "uniform" in arguments.parts:
        figures["uniform"] = {str(b): uniform(bench, b, arguments.rounds) for b in arguments.batches}
        _show(console, "uniform load, a full batch from step 0", figures["uniform"])
    if "mixed" in arguments.parts:
        figures["mixed"] = {}
        for b in arguments.batches:
            figures["mixed"] |= {f"{b}: {k}": v for k, v in mixed(bench, b, arguments.rounds, arguments.images).items()}
        _show(console, "mixed load", figures["mixed"])
    if "late" in arguments.parts:
        figures["late"] = {str(b): late_arrival(bench, b, 2 * arguments.rounds) for b in arguments.batches if b > 1}
        table = Table("batch", *next(iter(figures["late"].values())), title="a late arrival")
        for name, row in figures["late"].items():
            table.add_row(name, *(f"{v:.3g}" for v in row.values()))
        console.print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def _show(console: Console, title: str, rows: dict[str, dict[str, float]]) -> None:
    ratios = ("pipeline / engine, wall", "… processor")
    table = Table("batch", "engine, images/s", "engine, s", "pipeline, s", *ratios, title=title)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['engine_images_per_s']:.2f}",
            f"{row['engine_s']:.2f}",
            f"{row['pipeline_s']:.2f}",
            f"{row['speedup_wall']:.2f}×",
            f"{row['speedup_processor']:.2f}×",
        )
    console.print(table)


if __name__ == "__main__":
    command(main)
