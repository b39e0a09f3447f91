"""Profiles the cache of an adopted family; runs that are done are kept in files, so that a stopped stage continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adoption.context import Context
from cache.encoder import family_encoder
from cache.policy.selector import load_selector
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
    steps = context.family.heavy.steps
    if context.choices.cache_pairs == 0:
        return {"made": False, "why": "it was not asked for (--cache-pairs 0)"}
    ks = capture_steps(steps)
    if not ks:
        return {"made": False, "why": f"a run of {steps} steps has no step to resume from"}
    file = context.results.folder("cache") / "cache.json"
    if not file.exists() and not _measured(context, list(ks), file):
        return {"made": False, "why": f"no resumed run keeps {ALPHA:.0%} of the quality"}
    for path in file.parent.glob("runs-*.npz"):
        path.unlink()
    return {"made": True, "why": "", "file": str(file), "levels": [list(it) for it in load_selector(file).levels]}


def _measured(context: Context, ks: list[int], file: Path) -> bool:
    """Writes the profile to ``file``; returns False without one if no resumed run keeps enough of the quality."""
    encoder, steps = family_encoder(context.family), context.family.heavy.steps
    found = measure(
        EncodedLog(context.prompts, encoder.encode(context.prompts)),
        ks,
        KeptRuns(judged_runs(context.engine, context.judge), file.parent),
        CacheProfiling(alpha=ALPHA, count=context.choices.cache_pairs),
        progress=lambda done, total, what: context.report(f"cache: {what}", done, total),
    )
    selector = thresholds(found, ALPHA, steps)
    if not selector.levels:
        return False
    origin = ProfileOrigin(
        family=context.family.name,
        model=context.engine.models[context.last],
        encoder=encoder.version,
        judge=context.choices.measure_name,
        alpha=ALPHA,
    )
    write_profile(file, found, selector, origin)
    return True


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
