"""Profiles the cache of an adopted family; runs that are done are kept in files, so that a stopped stage continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adoption.context import Context
from cache.encoder import family_encoder
from cache.profiling import (
    CacheProfiling,
    EncodedLog,
    Generate,
    ProfileOrigin,
    Runs,
    measure,
    thresholds,
    write_profile,
)
from training.cache_profile import judged_runs
from weir.errors import ConfigError
from weir.files import written_whole
from weir.states import State, capture_steps

#: Share of the quality that resumed images have to keep.
ALPHA = 0.95


def cache_profile(context: Context) -> dict[str, Any]:
    """Thresholds of the cache, measured on pairs of prompts."""
    count, steps = context.choices.cache_pairs, context.family.heavy.steps
    if count == 0:
        return {"made": False, "why": "it was not asked for (--cache-pairs 0)"}
    ks = capture_steps(steps)
    if not ks:
        return {"made": False, "why": f"a run of {steps} steps has no step to resume from"}
    folder, encoder = context.results.folder("cache"), family_encoder(context.family)
    generate = KeptRuns(judged_runs(context.engine, context.judge), folder)
    found = measure(
        EncodedLog(context.prompts, encoder.encode(context.prompts)),
        list(ks),
        generate,
        CacheProfiling(alpha=ALPHA, count=count),
        progress=lambda done, total, what: context.report(f"cache: {what}", done, total),
    )
    selector = thresholds(found, ALPHA, steps)
    if not selector.levels:
        return {"made": False, "why": f"no resumed run keeps {ALPHA:.0%} of the quality"}
    file = folder / "cache.json"
    origin = ProfileOrigin(
        family=context.family.name,
        model=context.engine.models[context.last],
        encoder=encoder.version,
        judge=context.choices.measure_name,
        alpha=ALPHA,
    )
    write_profile(file, found, selector, origin)
    for path in folder.glob("runs-*.npz"):
        path.unlink()
    levels = [[similarity, k] for similarity, k in selector.levels]
    return {"made": True, "why": "", "file": str(file), "levels": levels, "pairs": len(found.similarity)}


class KeptRuns:
    """Generates batches of runs in a fixed order, and keeps each in a file.

    Args:
        generate: generates a batch whose file is missing.
    """

    def __init__(self, generate: Generate, folder: Path):
        self._generate, self._folder, self._calls = generate, folder, 0

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], states: Sequence[Any]) -> Runs:
        file = self._folder / f"runs-{self._calls:05d}.npz"
        self._calls += 1
        if file.exists():
            return _read(file)
        runs = self._generate(prompts, seeds, states)
        _write(file, runs)
        return runs


def _write(file: Path, runs: Runs) -> None:
    arrays: dict[str, Any] = {"quality": runs.quality, "confidence": runs.confidence, "count": len(runs.states)}
    for i, states in enumerate(runs.states):
        for k, state in states.items():
            arrays[f"state-{i}-{k}"] = state.latent
            arrays[f"about-{i}-{k}"] = np.array([str(state.steps), state.sampler, state.model])
    with written_whole(file) as draft, draft.open("wb") as out:
        np.savez(out, allow_pickle=False, **arrays)


def _read(file: Path) -> Runs:
    try:
        with np.load(file, allow_pickle=False) as found:
            states: list[dict[int, State]] = [{} for _ in range(int(found["count"]))]
            for name in found.files:
                if name.startswith("state-"):
                    i, k = map(int, name.split("-")[1:])
                    steps, sampler, model = found[f"about-{i}-{k}"].tolist()
                    states[i][k] = State(found[name], k, int(steps), sampler, model)
            return Runs(found["quality"], states, [None] * len(states), found["confidence"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file}: is damaged ({error}); delete it to make it again") from None
