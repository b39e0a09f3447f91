"""``docs/api.md``: its reference is up to date, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from load_balancer.http.reference import FAMILY, document, written
from testing.toy_family import PROFILE
from tests.load_balancer.local_service import serving
from weir.config import FamilyConfig, load_family
from weir.plan import Plan
from workers.replica import Worker

PAGE = Path("docs/api.md")


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == written(PAGE.read_text()), "run `python -m load_balancer.http.reference docs/api.md`"


def test_the_description_names_every_route_and_no_answer_that_none_gives() -> None:
    described = document(load_family(FAMILY))
    assert set(described["paths"]) == {
        "/v1/images/generations",
        "/v1/images/generations/{id}",
        "/v1/images/edits",
        "/v1/images/files/{name}",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/live",
        "/v1/admin/plan",
        "/v1/admin/pin",
        "/v1/admin/policy",
        "/v1/admin/replicas",
        "/v1/admin/replicas/{id}/drain",
        "/v1/admin/adapters",
        "/v1/admin/adapters/{id}",
        "/v1/admin/cache",
        "/v1/admin/cache/purge",
        "/healthz",
        "/readyz",
    }
    assert "HTTPValidationError" not in str(described)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testing.toy_family import FAMILY as TOY
    from weir.profiles import Profile

    profile = tmp_path / "profile.json"
    profile.write_text(Profile.model_validate(PROFILE).model_dump_json())
    plan = Plan.split(1, 1, 1, light_batch=4, heavy_batch=4, threshold=0.5)
    workers = [Worker(TOY, plan.to_dict(), emulate=str(profile)) for _ in plan.assignments]
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 6
    with serving(workers, plan, FamilyConfig.model_validate(TOY)) as service:
        monkeypatch.setenv("URL", service.url)
        for example in examples:
            exec(compile(example, str(PAGE), "exec"), {})
