"""Metrics of a replay, and its self-contained report page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.figures import Scope, summarise
from traces.outcome import RequestOutcome, read_outcomes
from traces.report import write_report
from weir.errors import ConfigError


def outcome(index: int = 0, arrival_s: float = 0.0, latency_s: float = 1.0, **fields) -> RequestOutcome:
    return RequestOutcome(
        **{
            "index": index,
            "arrival_s": arrival_s,
            "sent_s": arrival_s,
            "latency_s": latency_s,
            "status": 200,
            "error": "",
            "prompt": f"a {index} circle",
            **fields,
        }
    )


REFUSED: dict[str, Any] = {"status": 429, "error": "overloaded"}
FAILED: dict[str, Any] = {"status": 500, "error": "generation_failed"}


def test_late_refused_and_failed_requests_violate_the_slo() -> None:
    ends = [outcome(0), outcome(1, latency_s=5.1), outcome(2, **REFUSED), outcome(3, **FAILED), outcome(4, latency_s=5)]
    total = summarise(ends, Scope(5, duration_s=10)).total
    assert (total.late, total.refused, total.failed, total.answered) == (1, 1, 1, 3)
    assert total.violation_ratio == pytest.approx(3 / 5)
    assert total.demand_rps == 0.5
    assert total.goodput_rps == pytest.approx(0.2)


def test_latency_percentiles_count_images_only() -> None:
    ends = [outcome(i, latency_s=i / 100) for i in range(1, 101)] + [outcome(0, latency_s=99, **FAILED)]
    total = summarise(ends, Scope(5)).total
    assert (total.p50_s, total.p95_s, total.p99_s) == pytest.approx((0.505, 0.9505, 0.9901))


def test_the_light_share_counts_light_images_of_both_paths() -> None:
    routes = ["light", "light-deadline", "heavy", "heavy"]
    total = summarise([outcome(i, path=r) for i, r in enumerate(routes)] + [outcome(9)], Scope(5)).total
    three = summarise([outcome(i, path=r) for i, r in enumerate([*routes, "medium"])], Scope(5)).total
    assert list(three.paths) == ["light", "light-deadline", "medium", "heavy", "cache"], "in the order of the ladder"
    assert total.light_share == 0.5
    assert total.paths == {"light": 1, "light-deadline": 1, "heavy": 2, "cache": 0}


def test_a_late_client_is_reported() -> None:
    assert not summarise([outcome(sent_s=0.05)], Scope(5)).client_was_late
    late = summarise([outcome(sent_s=0.4)], Scope(5))
    assert late.client_was_late
    assert late.client_lateness_max_s == 0.4


ends = st.builds(
    lambda t, late, fields: outcome(0, t, late, **fields),
    st.floats(0, 500),
    st.floats(0, 20),
    st.sampled_from([REFUSED, FAILED, {}, {"path": "light"}, {"path": "heavy", "quality": 0.5}]),
)


@settings(max_examples=50)
@given(st.lists(ends, max_size=60), st.sampled_from([None, 0.7, 7, 1000]))
def test_the_windows_add_up_to_the_total(outcomes: list[RequestOutcome], window_s: float | None) -> None:
    summary = summarise(outcomes, Scope(5, window_s=window_s))
    for count in ("requests", "answered", "late", "refused", "failed"):
        assert sum(getattr(w, count) for w in summary.windows) == getattr(summary.total, count)
    assert summary.windows[-1].end_s == summary.total.end_s
    for figures in (summary.total, *summary.windows):
        assert figures.requests == figures.answered + figures.refused + figures.failed
        assert figures.violation_ratio is None or 0 <= figures.violation_ratio <= 1
        assert figures.goodput_rps <= figures.demand_rps


@pytest.mark.parametrize(("duration_s", "windows"), [(120, 24), (600, 20), (30, 30), (86400, 24)])
def test_windows_have_round_lengths_and_a_limited_number(duration_s: float, windows: int) -> None:
    assert len(summarise([outcome()], Scope(5, duration_s=duration_s)).windows) == windows


@pytest.fixture
def run(tmp_path: Path, server) -> tuple[list[RequestOutcome], Path]:
    """Outcomes of all kinds, with images and a prompt that contains markup."""
    (tmp_path / "images").mkdir()
    routes = ["light", "light", "light-deadline", "heavy"]
    outcomes = []
    for i, route in enumerate(routes * 3):
        (tmp_path / f"images/{i:06d}.png").write_bytes(server.png)
        outcomes.append(outcome(i, float(i), path=route, confidence=i / 12, steps=2, image=f"images/{i:06d}.png"))
    outcomes.append(outcome(12, 12.0, **REFUSED))
    outcomes.append(outcome(13, 13.0, prompt="<script>alert(1)</script>", path="heavy", image="images/000000.png"))
    return outcomes, tmp_path


class Page(HTMLParser):
    """Collects the links and tags of a page, and checks that tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained(run) -> None:
    outcomes, out = run
    write_report(outcomes, out, Scope(5))
    html = (out / "report.html").read_text()
    page = Page(html)
    assert page.open == []
    assert page.loads
    assert all(link.startswith(("data:image/", "#")) for link in page.loads)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http" not in html
    assert not re.search(r"@import|url\((?!#)", html)


def test_the_page_shows_figures_plots_and_a_gallery_by_path(run) -> None:
    outcomes, out = run
    write_report(outcomes, out, Scope(5, planned=20), title="Bursty & calm", about={"rate scale": "0.5"})
    html = (out / "report.html").read_text()
    page = Page(html)
    assert page.tags.count("img") == 13
    assert page.tags.count("svg") == 5
    for text in ("Bursty &amp; calm", "rate scale", "light-deadline", "7.1 %", "overloaded", "6 of 20 requests"):
        assert text in html
    assert "&lt;script&gt;alert(1)" in html
    assert "prefers-color-scheme: dark" in html
    assert "var(--light)" in html


def test_the_report_has_its_metrics_as_json_and_its_plots_as_svg(run) -> None:
    outcomes, out = run
    summary = write_report(outcomes, out, Scope(5, duration_s=20), about={"trace": "bursty.csv"})
    report = json.loads((out / "report.json").read_text())
    assert report["total"]["violation_ratio"] == summary.total.violation_ratio
    assert len(report["windows"]) == len(summary.windows) == 20
    assert report["about"] == {"trace": "bursty.csv"}
    names = ["confidence.svg", "demand.svg", "latency.svg", "paths.svg", "violations.svg"]
    assert sorted(p.name for p in (out / "plots").iterdir()) == names
    assert not list(out.rglob("*.part*"))


def test_a_scorer_sets_the_quality_of_every_kept_image(run) -> None:
    outcomes, out = run
    calls = []

    def scorer(prompts, images):
        calls.append((prompts, [image.size for image in images]))
        return [0.25 + 0.5 * (i % 2) for i in range(len(prompts))]

    summary = write_report(outcomes[:12], out, Scope(5), scorer=scorer)
    assert calls == [([o.prompt for o in outcomes[:12]], [(8, 8)] * 12)]
    assert summary.total.quality == 0.5
    assert [o.quality for o in read_outcomes(out / "requests.csv")] == [0.25, 0.75] * 6
    assert "Quality, mean" in (out / "report.html").read_text()


def test_a_scorer_that_skips_an_image_is_refused(run) -> None:
    outcomes, out = run
    with pytest.raises(ConfigError, match="returned 1 qualities for 13 images"):
        write_report(outcomes, out, Scope(5), scorer=lambda prompts, images: [1.0])


def test_a_scorer_that_returns_no_number_is_refused(run) -> None:
    outcomes, out = run
    with pytest.raises(ConfigError, match=r"returned nan for images/000000\.png; a quality must be finite"):
        write_report(outcomes, out, Scope(5), scorer=lambda prompts, images: [float("nan")] * len(images))


@pytest.mark.parametrize(
    "outcomes",
    [[], [outcome(**FAILED)], [outcome(image="images/missing.png", path="light")]],
    ids=["nothing ended", "only failures", "a missing image"],
)
def test_a_report_without_images_is_written(tmp_path: Path, outcomes: list[RequestOutcome]) -> None:
    write_report(outcomes, tmp_path, Scope(5))
    assert Page((tmp_path / "report.html").read_text()).tags.count("img") == 0


@pytest.mark.parametrize("change", [{"slo_s": 0}, {"window_s": float("nan")}])
def test_a_number_out_of_range_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        write_report([outcome()], tmp_path, Scope(**{"slo_s": 5, **change}))
