"""The page of metrics matches the code."""

from __future__ import annotations

from deploy.monitoring.reference import PAGE, page
from weir import metrics


def test_the_committed_page_is_current():
    assert PAGE.read_text() == page(), "run `python -m deploy.monitoring.reference`"


def test_every_metric_is_on_the_page_once():
    text = page()
    for metric in metrics.ALL:
        assert text.count(f"| `{metric.name}` |") == 1
