"""The page of a comparison is one file that needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from baselines.comparison.compare import Comparison, compare
from baselines.comparison.page import write_page
from simulator.arrivals import Arrivals, poisson
from simulator.confidences import sample_confidences
from simulator.families import family_setting
from simulator.request_stream import RequestStream

SETTING = family_setting("diffserve-1", 4)


def compared(arrivals: Arrivals, setting=SETTING, **more) -> Comparison:
    confidences = sample_confidences(setting.deferral, len(arrivals), seed=1)
    return compare(setting, RequestStream(arrivals, {"light": confidences}), ("weir", "diffserve", "all-heavy"), **more)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "compare.html"
    write_page(compared(poisson(np.full(40, 6.0), seed=2), gpu_hour_price=2.0), path, title="a <trace>")
    return path.read_text()


def test_the_page_shows_every_policy_with_its_figures(page):
    rows = re.findall(r"<td class=\"policy\">.*?</i>([\w-]+)</td><td>([\d.]+) %", page)
    assert [policy for policy, _ in rows] == ["weir", "diffserve", "all-heavy"]
    assert "cost/1000" in page


def test_the_page_is_self_contained(page):
    assert page.count("<svg") == 4
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    assert "url(http" not in page


def test_the_title_is_escaped(page):
    assert "<h1>a &lt;trace&gt;</h1>" in page


@pytest.mark.parametrize("arrivals", [poisson(np.full(20, 3.0), seed=1), Arrivals.of(np.array([]), np.array([]))])
def test_a_family_without_quality_and_a_trace_without_requests_have_a_page(arrivals, tmp_path):
    write_page(compared(arrivals, replace(SETTING, quality=None)), tmp_path / "page.html", title="t")
    assert "quality of mixes was not measured" in (tmp_path / "page.html").read_text()
