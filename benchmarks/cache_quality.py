"""The cache against its baselines on a family that runs here: steps saved, paired quality, distance, a gallery.

    python -m benchmarks.cache_quality --warm 300 --requests 100 --selector deploy/profiles/weir-tiny-cache.json \
        --out runs/cache

The first prompts of a log are drawn whole and fill the cache; then every approach answers the same next requests, with
the same seeds, and its images are judged beside those of whole runs (``vanilla``). Approaches see a cache that does not
change, so that all answer from the same. ``fewer-steps`` gets, request by request, as many steps as ``weir`` leaves;
``modm`` resumes as often at every K as ``weir``, at the requests whose picture fits best, for its published thresholds
are those of another CLIP. ``judged`` takes the neighbour whose picture the family's discriminator likes best for the
new prompt (``--judged``, a profile by confidence), and is followed by ``fewer-steps`` with the mean of its steps for
all, and by ``tries``: short runs from noise, judged likewise, without a cache. The judge of the table, the attribute
checker, shares neither weights nor architecture with the discriminator. Latencies are those of single requests, one
after another, lookup and fetch included.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache.cache import Judge
from cache.encoder import Encoder, family_encoder
from cache.index import VectorIndex
from cache.policy.approaches import APPROACHES, Act, Approach, approach
from cache.policy.catalog import Catalog, Found, Match, Weigh
from cache.policy.eviction import Lru
from cache.policy.selector import Selector, load_selector
from cache.store.redis_backend import RedisBackend
from cache.store.redis_server import RedisServer
from cache.store.store import SealedStore
from quality.clip import ClipScorer
from quality.frechet import frechet_distance
from quality.paired import paired_ratio
from quality.suite import Suite, family_suite, tensors
from traces.prompts import Habits, prompt_log
from training.scenes import render, sample_scene
from weir.config import FamilyConfig, load_family
from weir.core import ImageRequest, Overrides, Resume, WarmStart
from weir.states import State, capture_steps, state_key
from workers.models.family import Family

console = Console()
BATCH = 8
LOGS = {
    "sessions": Habits(),
    "zipf": Habits(goes_on=0.0, zipf=1.0, themes=100),
}


@dataclass
class Cached:
    """A prompt that was drawn whole."""

    prompt: str
    image: Image.Image
    states: dict[int, State]
    finished: State
    seen: np.ndarray | None


@dataclass
class Answers:
    """What one approach made of the requests."""

    images: list[Image.Image]
    steps: list[int]
    found: list[Found]
    cached: list[Cached | None] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """Scores by judge, [R] each, and features [R, D] of one approach's images."""

    scores: dict[str, np.ndarray]
    features: np.ndarray


class Bench:
    """A family, its judges, and a log of prompts of which the first are cached."""

    def __init__(self, config: FamilyConfig, prompts: Sequence[str], warm: int, seed: int):
        self.config = config
        self.engine = Family.load(config, threads=1)
        self.suite: Suite = family_suite(config)
        self.clip = ClipScorer.load(str(config.clip))
        self.encoder: Encoder = family_encoder(config)
        self.steps = config.heavy.steps
        self.asked = list(prompts[warm:])
        self.seeds = [seed + 1_000_003 + i for i in range(len(self.asked))]
        self.cached = self._warm(list(dict.fromkeys(prompts[:warm])), seed)
        self.vectors = self.encoder.encode([c.prompt for c in self.cached])
        self.queries = self.encoder.encode(self.asked)

    def _warm(self, prompts: list[str], seed: int) -> list[Cached]:
        requests = [
            self.request(f"warm-{i}", prompt, seed + i, capture="warm", keep_latent=True)
            for i, prompt in enumerate(prompts)
        ]
        return [
            Cached(
                prompt,
                picture(drawn.image),
                {s.step: s for s in drawn.states},
                drawn.latent,
                None if drawn.seen is None else np.frombuffer(drawn.seen, np.float16),
            )
            for prompt, drawn in zip(prompts, self.draw("heavy", requests, what="filling the cache"), strict=True)
        ]

    def request(self, name: str, prompt: str, seed: int, **more: object) -> ImageRequest:
        side = self.config.size
        return ImageRequest(name, prompt, seed, side, side, float("inf"), **more)  # type: ignore[arg-type]

    def draw(
        self, variant: str, requests: Sequence[ImageRequest], states: Sequence[State | None] = (), what: str = ""
    ) -> list:
        states = states or [None] * len(requests)
        starts = (
            track(range(0, len(requests), BATCH), what, console=console) if what else range(0, len(requests), BATCH)
        )
        return [
            drawn
            for start in starts
            for drawn in self.engine.generate(variant, requests[start : start + BATCH], states[start : start + BATCH])
        ]

    def found(self, chosen: Approach) -> list[Found]:
        """What the approach's rules find for every request in the warm cache."""
        ledger = self.ledger(chosen)
        asked = zip(self.queries, self.asked, strict=True)
        return [ledger.find("", query, weigh=self.weigh(prompt)) for query, prompt in asked]

    def ledger(self, chosen: Approach) -> Catalog:
        """All that is cached, under the approach's rules."""
        assert chosen.rules is not None
        ledger = Catalog(chosen.rules, Lru(), 1 << 60, lambda: VectorIndex(self.encoder.dim))
        ks = {*capture_steps(self.steps), self.steps}
        for i, vector in enumerate(self.vectors):
            ledger.insert("", str(i), vector, dict.fromkeys(ks, 1), self.cached[i].seen)
        return ledger

    def weigh(self, prompt: str) -> Weigh | None:
        """How well a cached picture fits the prompt, by the discriminator of a family that has one."""
        judge = self.engine.judges["light"]
        return partial(judge.weigh, prompt=prompt) if isinstance(judge, Judge) else None

    def fitting(self) -> np.ndarray:
        """Cosines of every request with every cached picture, [R, C]."""
        pictures = torch.cat(
            [
                self.clip.embed_images(tensors([c.image for c in self.cached[i : i + 64]]))
                for i in range(0, len(self.cached), 64)
            ]
        )
        return (self.clip.embed_text(self.asked) @ pictures.T).numpy()

    def answer(self, name: str, selector: str, like: Answers | None, even: int | None = None) -> Answers:
        """Draws, or takes from the cache, what the approach answers.

        Args:
            like: another approach's answers, for the approaches that are given its K.
            even: steps of every run of ``fewer-steps``; None: as many as each K leaves.
        """
        chosen = approach(name, load_selector(selector))
        trusted = chosen.rules.selector if chosen.rules else Selector(())
        count = len(self.asked)
        none = [Found(-1.0, None)] * count
        if name in ("crs", "modm"):
            cosines = self.fitting()
            nearest = cosines.argmax(1)
            ks = [self.steps] * count
            if name == "modm":
                assert like is not None
                ranks = np.argsort(np.argsort(-cosines.max(1)))
                ks = np.array(sorted((f.k for f in like.found), reverse=True))[ranks].tolist()
            found = [
                Found(float(cosines[i, j]), Match(str(j), float(cosines[i, j]), k, k) if k else None)
                for i, (j, k) in enumerate(zip(nearest, ks, strict=True))
            ]
        elif name == "fewer-steps":
            assert like is not None
            found = like.found
        else:
            found = self.found(chosen) if chosen.rules is not None else none
        cached = [None if f.match is None else self.cached[int(f.match.entry)] for f in found]
        images: list[Image.Image | None] = [None] * count
        steps = [0] * count
        jobs: dict[str, list[tuple[int, ImageRequest, State | None]]] = {"light": [], "heavy": []}
        for i, (prompt, seed, one, near) in enumerate(zip(self.asked, self.seeds, found, cached, strict=True)):
            act = chosen.act(one.k) if even is None else Act.FEWER
            if act is Act.RETURN:
                assert near is not None
                images[i] = near.image
            elif act is Act.LIGHT:
                jobs["light"].append((i, self.request(f"r{i}", prompt, seed), None))
            elif act is Act.RESUME:
                assert near is not None
                resume = Resume("-", one.k, trusted.stride, trusted.accept)
                request = self.request(f"r{i}", prompt, seed, resume=resume)
                jobs["heavy"].append((i, request, near.states[one.k]))
            elif act is Act.RENOISE:
                assert near is not None
                start = near.finished.to_bytes()
                request = self.request(f"r{i}", prompt, seed, warm_start=WarmStart(start, one.k))
                jobs["heavy"].append((i, request, None))
            else:
                left = self.steps - chosen.saved(one.k)
                if even is not None:
                    left = even
                jobs["heavy"].append((i, self.request(f"r{i}", prompt, seed, overrides=Overrides(left)), None))
        for variant, part in jobs.items():
            drawn = self.draw(variant, [r for _, r, _ in part], [s for _, _, s in part], what=name if part else "")
            for (i, _, _), one in zip(part, drawn, strict=True):
                images[i] = picture(one.image)
                steps[i] = one.steps if variant == "heavy" else 0
            doubted = [
                (i, request, one)
                for (i, request, state), one in zip(part, drawn, strict=True)
                if state is not None and request.resume and (one.confidence or 0.0) < request.resume.min_confidence
            ]
            again = [replace(request, resume=None, judge=True) for _, request, _ in doubted]
            for (i, _, before), one in zip(doubted, self.draw(variant, again), strict=True):
                steps[i] += one.steps
                if (one.confidence or 0.0) >= (before.confidence or 0.0):
                    images[i] = picture(one.image)
        return Answers([i for i in images if i is not None], steps, found, cached)

    def tries(self, selector: Selector, most: int = 3) -> Answers:
        """Short runs from noise, as long as a resumed one would be from the beginning, until the discriminator accepts
        one: what judging gives without a cache. The best judged of ``most`` is the answer where none is accepted."""
        count, short = len(self.asked), selector.steps // selector.stride
        best: list[tuple[float, Image.Image | None]] = [(-1.0, None)] * count
        steps = [0] * count
        for attempt in range(most):
            left = [i for i, (confidence, _) in enumerate(best) if confidence < selector.accept]
            requests = [
                self.request(
                    f"r{i}", self.asked[i], self.seeds[i] + 7919 * attempt, overrides=Overrides(short), judge=True
                )
                for i in left
            ]
            for i, one in zip(left, self.draw("heavy", requests, what=f"try {attempt + 1}"), strict=True):
                steps[i] += one.steps
                best[i] = max(best[i], (one.confidence or 0.0, picture(one.image)), key=lambda tried: tried[0])
        return Answers([image for _, image in best if image is not None], steps, [Found(-1.0, None)] * count)

    def judge(self, answers: Answers) -> Judged:
        return Judged(self.suite.scores(self.asked, answers.images), self.suite.features(answers.images))

    def latencies(self, selectors: Mapping[str, str], count: int) -> dict[str, dict[str, float]]:
        """Seconds of single requests without a cache (``off``) and with each approach that has a selector, taking
        turns; and of the lookup, encoder included, and the fetch from Redis among them."""
        chosen = {name: approach(name, load_selector(selector)) for name, selector in selectors.items()}
        ledgers = {name: self.ledger(one) for name, one in chosen.items()}
        seconds: dict[str, list[float]] = defaultdict(list)
        server = RedisServer.start()
        try:
            store = SealedStore(RedisBackend(server.url, read_s=1, write_s=1), b"the benchmark's secret")
            for i, one in enumerate(self.cached):
                request = ImageRequest(str(i), one.prompt, 0, 64, 64, 0.0, capture="p")
                store.put(request, list(one.states.values()))
            for prompt, seed in list(zip(self.asked, self.seeds, strict=True))[:count]:
                whole = self.request("off", prompt, seed)
                begin = time.perf_counter()
                self.engine.generate("heavy", [whole])
                seconds["off"].append(time.perf_counter() - begin)
                for name, ledger in ledgers.items():
                    begin = time.perf_counter()
                    self._reuse(chosen[name], ledger, store, whole, name, seconds)
                    seconds[name].append(time.perf_counter() - begin)
        finally:
            server.stop()
        return {
            name: {f"p{q}_s": float(np.percentile(values, q)) for q in (50, 95, 99)} | {"requests": len(values)}
            for name, values in seconds.items()
        }

    def _reuse(
        self,
        chosen: Approach,
        ledger: Catalog,
        store: SealedStore,
        whole: ImageRequest,
        name: str,
        seconds: dict[str, list[float]],
    ) -> None:
        """Answers one request as a service does: looks up, fetches, resumes, and draws anew what is doubted."""
        begin = time.perf_counter()
        found = ledger.find("", self.encoder.encode([whole.prompt])[0], weigh=self.weigh(whole.prompt))
        seconds[f"{name}: lookup"].append(time.perf_counter() - begin)
        if found.match is None:
            self.engine.generate("heavy", [whole])
            return
        assert chosen.rules is not None
        begin = time.perf_counter()
        state = store.get(state_key("p", found.match.entry, found.k))
        seconds[f"{name}: fetch"].append(time.perf_counter() - begin)
        trusted = chosen.rules.selector
        short = replace(whole, resume=Resume("-", found.k, trusted.stride, trusted.accept))
        [drawn] = self.engine.generate("heavy", [short], [state])
        if (drawn.confidence or 0.0) < trusted.accept:
            self.engine.generate("heavy", [replace(whole, judge=True)])


def figures(bench: Bench, answers: Answers, judged: Judged, whole: Judged, reference: np.ndarray) -> dict[str, Any]:
    """One row of the table, JSON-ready. ``likeness``: cosine of features to the whole run's of the same request."""
    ratios = {judge: paired_ratio(values, whole.scores[judge]) for judge, values in judged.scores.items()}
    ks = [f.k for f in answers.found]
    return {
        "hit_ratio": sum(k > 0 for k in ks) / len(ks),
        "shares": {str(k): ks.count(k) / len(ks) for k in sorted(set(ks))},
        "steps_saved": 1 - sum(answers.steps) / (bench.steps * len(answers.steps)),
        **{judge: float(values.mean()) for judge, values in judged.scores.items()},
        "paired": {judge: {"ratio": r.ratio, "low": r.low, "high": r.high} for judge, r in ratios.items()},
        "frechet": frechet_distance(judged.features, reference),
        "likeness": float((unit(judged.features) * unit(whole.features)).sum(1).mean()),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


COLUMNS = ("approach", "hits", "steps saved", "attributes", "CLIP", "paired ratio", "Fréchet", "likeness")


def cells_of(name: str, row: dict[str, Any]) -> list[str]:
    paired = row["paired"]["attributes"]
    return [
        name,
        f"{row['hit_ratio']:.0%}",
        f"{row['steps_saved']:.1%}",
        f"{row['attributes']:.3f}",
        f"{row['clip']:.3f}",
        f"{paired['ratio']:.3f} [{paired['low']:.3f}, {paired['high']:.3f}]",
        f"{row['frechet']:.2f}",
        f"{row['likeness']:.3f}",
    ]


def picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def gallery(bench: Bench, weir: Answers, vanilla: Answers, path: Path, count: int = 24) -> None:
    """A page: cached image, approximate image, whole run, side by side; hits of every K, the largest first."""
    hits = sorted((i for i, f in enumerate(weir.found) if f.k), key=lambda i: (-weir.found[i].k, i))
    shown = hits[:: max(1, len(hits) // count)][:count]

    def embedded(image: Image.Image) -> str:
        buffer = io.BytesIO()
        image.resize((192, 192), Image.Resampling.NEAREST).save(buffer, "PNG")
        return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'

    rows = []
    for i in shown:
        one, near = weir.found[i], weir.cached[i]
        assert near is not None
        rows.append(
            f"<tr><td>{embedded(near.image)}<br>{html.escape(near.prompt)}</td>"
            f"<td>{embedded(weir.images[i])}<br>{bench.steps - one.k} of {bench.steps} steps</td>"
            f"<td>{embedded(vanilla.images[i])}<br>{bench.steps} steps</td>"
            f"<td>{html.escape(bench.asked[i])}<br>similarity {one.match.similarity if one.match else 0:.3f}</td></tr>"
        )
    path.write_text(
        "<!doctype html><meta charset=utf-8><title>Approximate cache</title>"
        "<style>body{font:14px system-ui;margin:2em}td{padding:8px;vertical-align:top;max-width:220px}</style>"
        f"<h1>{html.escape(bench.config.name)}: cached, approximate, whole</h1>"
        "<table><tr><th>cached image</th><th>resumed from its state</th><th>whole run</th><th>asked for</th></tr>"
        f"{''.join(rows)}</table>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("deploy/families/weir-tiny.yaml"))
    parser.add_argument("--log", choices=sorted(LOGS), default="sessions")
    parser.add_argument("--warm", type=int, default=300, help="requests that fill the cache")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--selector", default="nirvana", help="of weir, fewer-steps and modm")
    parser.add_argument("--judged", help="a profile by confidence; left out, pictures are not judged")
    parser.add_argument("--approaches", nargs="+", default=list(APPROACHES), choices=list(APPROACHES))
    parser.add_argument("--latency", type=int, default=0, help="requests to time one by one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/cache"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = prompt_log(np.random.default_rng(args.seed), args.warm + args.requests, LOGS[args.log])
    bench = Bench(load_family(args.family), prompts, args.warm, args.seed)
    rng = np.random.default_rng(args.seed + 1)
    real = [Image.fromarray(render(sample_scene(rng))) for _ in range(max(200, args.requests))]
    reference = bench.suite.features(real)
    others = [n for n in args.approaches if n not in ("vanilla", "weir", "judged")]
    rows = [(n, n, args.selector, "weir") for n in ("vanilla", "weir", *others)]
    if args.judged:
        rows += [("judged", "judged", args.judged, ""), ("fewer-steps (judged)", "fewer-steps", args.judged, "judged")]
        rows.append(("tries (judged)", "", args.judged, ""))
    answers: dict[str, Answers] = {}
    judged: dict[str, Judged] = {}
    found: dict = {"log": args.log, "model": bench.engine.models["heavy"], "warm": len(bench.cached)}
    found |= {"requests": len(bench.asked), "approaches": {}}
    table = Table(*COLUMNS, title=f"log: {args.log}")

    def written() -> None:
        (args.out / f"{args.log}.json").write_text(json.dumps(found, indent=1))

    for name, of, selector, like in rows:
        even = round(float(np.mean(answers[like].steps))) if name == "fewer-steps (judged)" else None
        found_by = load_selector(selector)
        answers[name] = bench.answer(of, selector, answers.get(like), even) if of else bench.tries(found_by)
        judged[name] = bench.judge(answers[name])
        row = figures(bench, answers[name], judged[name], judged["vanilla"], reference)
        found["approaches"][name] = row
        cells = cells_of(name, row)
        console.print(", ".join(f"{c} {v}" for c, v in zip(COLUMNS, cells, strict=True)), highlight=False)
        table.add_row(*cells)
        written()
        if name == "weir":
            gallery(bench, answers["weir"], answers["vanilla"], args.out / f"gallery-{args.log}.html")
    console.print(table)
    for name, fewer in (("weir", "fewer-steps"), ("judged", "fewer-steps (judged)")):
        if {name, fewer} <= judged.keys():
            over = paired_ratio(judged[name].scores["attributes"], judged[fewer].scores["attributes"])
            found["approaches"][name]["over_fewer_steps"] = {"ratio": over.ratio, "low": over.low, "high": over.high}
            console.print(f"attributes of {name} over those of as few steps from noise: {over.text}", highlight=False)
    written()
    if args.latency:
        timed = {"weir": args.selector} | ({"judged": args.judged} if args.judged else {})
        found["latency"] = bench.latencies(timed, args.latency)
        console.print_json(json.dumps(found["latency"]))
        written()
    console.print(f"figures and gallery are in {args.out}")


if __name__ == "__main__":
    main()
