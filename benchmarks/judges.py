"""Compares a family's CLIP score with its discriminator as a judge: accuracy, and quality of the mix.

    python -m benchmarks.judges [--count 300]

It generates an image of both variants with one seed for each prompt; the embedded family was not trained on these
prompts. The attribute checker, which shares neither weights nor architecture with the judges, measures the share of the
requested attributes. At every light share the images with the highest confidences stay light.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from benchmarks import command
from quality.suite import family_suite, tensors
from traces.prompts import prompt_by_id
from weir.config import CLIP_SCORE, load_family
from weir.core import ImageRequest
from workers.models.family import Family
from workers.models.judges import family_judge

_SHARES = (0.2, 0.5, 0.7)
_BATCH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--count", type=int, default=300, help="number of prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config, console = load_family(arguments.family), Console()
    engine, suite = Family.load(config, threads=1), family_suite(config)
    by_clip = config.light.model_copy(update={"discriminator": CLIP_SCORE})
    clip = family_judge(config.model_copy(update={"variants": {**config.variants, "light": by_clip}}))
    assert clip is not None
    prompts, size = [prompt_by_id(i) for i in range(arguments.count)], config.size
    requests = [ImageRequest(str(i), prompt, i, size, float("inf")) for i, prompt in enumerate(prompts)]
    generated = {
        key: [
            one
            for start in range(0, len(requests), _BATCH)
            for one in engine.generate(key, requests[start : start + _BATCH])
        ]
        for key in config.keys
    }
    images = {key: [Image.open(io.BytesIO(one.image)).convert("RGB") for one in of] for key, of in generated.items()}
    light, heavy = (suite.scores(prompts, images[key])["attributes"] for key in ("light", "heavy"))
    confidences = {
        "discriminator": np.array([one.confidence or 0.0 for one in generated["light"]]),
        "CLIP score": np.array(clip.confidence(tensors(images["light"]), prompts)),
    }
    table = Table("judge", "AUC, shows all", "AUC, as good as heavy", *(f"{share:.0%} light" for share in _SHARES))
    for name, of in confidences.items():
        order = np.argsort(-of)
        kept = [np.isin(np.arange(len(of)), order[: round(share * len(of))]) for share in _SHARES]
        aucs = [roc_auc_score(label, of) for label in (light >= 1 - 1e-9, light >= heavy - 1e-9)]
        table.add_row(name, *(f"{auc:.3f}" for auc in aucs), *(f"{np.where(k, light, heavy).mean():.3f}" for k in kept))
    mixes = [share * light.mean() + (1 - share) * heavy.mean() for share in _SHARES]
    table.add_row("chance", "0.500", "0.500", *(f"{mix:.3f}" for mix in mixes))
    console.print(table)
    console.print(
        f"all light {light.mean():.3f}, all heavy {heavy.mean():.3f}, {len(prompts)} prompts", highlight=False
    )


if __name__ == "__main__":
    command(main)
