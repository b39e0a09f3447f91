"""LoRA adapters of requests: what is accepted, what reaches the workers, and what administrators change."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
import jsonschema
import pytest

from load_balancer.admin_controls import ControlTargets
from load_balancer.http.admin_schema import AdapterBody, parsed
from load_balancer.http.api import create_app
from load_balancer.http.api_keys import ApiKeys
from load_balancer.http.openapi import EDITS, GENERATIONS
from load_balancer.http.schema import RequestRules
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings, Connections
from load_balancer.runner.generation_request import GenerationRequest
from load_balancer.shared.job_ledger import JobRecord
from testing.pictures import gradient, png
from tests.load_balancer.malformed_requests import GOOD
from weir.adapters import AdapterUse, AdapterWeights
from weir.config import AdapterConfig, FamilyConfig, LimitsConfig
from weir.core import ImageSize
from weir.errors import InvalidRequest
from weir.plan import HEAVY, LIGHT

NIGHT = AdapterWeights("/weights/night.safetensors")
SEPIA = AdapterWeights("someone/sepia", "abc", "sepia.safetensors")


class FakeWorkers:
    """Refuses adapters in files whose name contains ``wrong``."""

    async def check_adapter(self, use: AdapterUse) -> None:
        if "wrong" in use.weights.reference:
            raise InvalidRequest(f"adapters.{use.name}: it is for another model", param="file")


@pytest.fixture
def family(family: FamilyConfig) -> FamilyConfig:
    night = AdapterConfig(file=NIGHT.reference)
    sepia = AdapterConfig(repository=SEPIA.reference, revision=SEPIA.revision, weight_name=SEPIA.file)
    return family.model_copy(update={"adapters": {"sepia": sepia, "night": night}})


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    targets = ControlTargets(workers=FakeWorkers())
    balancer = Balancer(
        pool,
        plan,
        family,
        BalancerSettings(slo_s=5.0, queued=8),
        profile=profile,
        connections=Connections(targets=targets),
    )
    await balancer.registry._take_in(await pool.describe())
    return balancer


@pytest.fixture
async def client(balancer, family) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(balancer, family, callers=ApiKeys(open_admin=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


@pytest.mark.parametrize(
    ("loras", "used"),
    [
        (None, {}),
        ([], {}),
        ([{"name": "night"}], {"night": 1.0}),
        ([{"name": "sepia", "scale": -4}, {"name": "night", "scale": 0.7}], {"night": 0.7, "sepia": -4.0}),
        ([{"name": "night", "scale": None}, {"name": "night", "scale": 0.5}], {"night": 1.5}),
        ([{"name": "night", "scale": 4.1}], "has the scale 4.1; accepted: a list of at most 8 objects"),
        ([{"name": "noon"}], r"has the unknown name 'noon'; accepted: .* \(night or sepia\)"),
        ([{"name": "night"}] * 9, "has 9 entries"),
        ([{"scale": 1}], "loras is {'scale': 1}"),
        ([{"name": "night", "path": "/etc"}], "loras is '/etc'"),
        ({"name": "night"}, "loras is"),
        ([{"name": "night", "scale": "1"}], "loras is '1'"),
    ],
    ids=str,
)
def test_a_request_names_adapters_of_the_service_with_scales_in_a_range(balancer, family, loras, used):
    rules = RequestRules(family, LimitsConfig(), adapters=balancer.adapters)
    raw = {"prompt": "a red circle", "loras": loras}
    schema = rules.described()["requestBody"]["content"]["application/json"]["schema"]
    described = jsonschema.Draft202012Validator(schema).is_valid(raw)
    if isinstance(used, dict):
        assert {it.name: it.scale for it in rules.read(json.dumps(raw).encode()).adapters} == used
        assert described
    else:
        with pytest.raises(InvalidRequest, match=used) as refused:
            rules.read(json.dumps(raw).encode())
        assert refused.value.param == "loras"
        assert not described


async def test_light_and_heavy_images_get_the_adapters_and_the_answer_names_them(client, pool):
    pool.confidence = 0.0
    loras = [{"name": "sepia", "scale": 0.25}, {"name": "night"}]
    answer = await client.post(GENERATIONS, json={**GOOD, "loras": loras})
    about = answer.json()["data"][0]["weir"]
    assert about["made_with"]["adapters"] == (
        "night*1=night.safetensors@local sepia*0.25=someone/sepia@abc#sepia.safetensors"
    )
    assert [variant for _, variant, _ in pool.calls] == [LIGHT, HEAVY]
    for _, _, request in pool.calls:
        uses = tuple(map(AdapterUse.from_dict, request["adapters"]))
        assert uses == (AdapterUse("night", 1.0, NIGHT), AdapterUse("sepia", 0.25, SEPIA))


async def test_an_edit_names_adapters_as_json_in_its_form(client, pool):
    files = {"image": ("a.png", png(gradient(ImageSize(64, 64))))}
    loras = json.dumps([{"name": "night", "scale": 0.5}])
    answer = await client.post(EDITS, data={**GOOD, "loras": loras}, files=files)
    assert answer.status_code == 200, answer.text
    assert pool.calls[-1][2]["adapters"][0]["scale"] == 0.5
    answer = await client.post(EDITS, data={**GOOD, "loras": "night"}, files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras")


async def test_without_adapters_an_answer_names_none(client):
    answer = await client.post(GENERATIONS, json=GOOD)
    assert "adapters" not in answer.json()["data"][0]["weir"]["made_with"]


def test_a_request_that_another_load_balancer_takes_over_keeps_its_adapters():
    wanted = GenerationRequest("a", ImageSize(64, 64), adapters=(AdapterUse("sepia", 0.5, SEPIA),))
    record = JobRecord("1", wanted, None, "http://weir", 0.0, "a")
    assert JobRecord.from_json(record.to_json()).request == wanted
    assert wanted.digest != GenerationRequest("a", ImageSize(64, 64)).digest


async def test_an_administrator_adds_and_removes_adapters_while_the_service_runs(client, pool, balancer):
    async def offered() -> tuple[list[str], list[str]]:
        models = (await client.get("/v1/models")).json()["data"]
        document = (await client.get("/openapi.json")).json()["paths"][GENERATIONS]["post"]["requestBody"]
        loras = document["content"]["application/json"]["schema"]["properties"]["loras"]
        return models[0]["adapters"], loras["anyOf"][0]["items"]["properties"]["name"]["enum"]

    assert await offered() == (["night", "sepia"],) * 2
    body = {"name": "chalk", "file": "/weights/chalk.safetensors"}
    state = (await client.post("/v1/admin/adapters", json=body)).json()
    assert state["adapters"]["chalk"] == {"reference": body["file"], "revision": None, "file": None}
    assert (await client.delete("/v1/admin/adapters/night")).status_code == 200
    assert await offered() == (["chalk", "sepia"],) * 2
    assert (await client.post(GENERATIONS, json={**GOOD, "loras": [{"name": "chalk"}]})).status_code == 200
    assert pool.calls[-1][2]["adapters"][0]["weights"]["reference"] == body["file"]
    assert (await client.post(GENERATIONS, json={**GOOD, "loras": [{"name": "night"}]})).status_code == 400
    assert [it.action for it in balancer.controls.log.recent] == ["add-adapter", "remove-adapter"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"name": "sepia", "file": "/a.safetensors"}, 409, "there is an adapter sepia already"),
        ({"name": "new", "file": "/wrong.safetensors"}, 400, "it is for another model"),
        ({"name": "new", "file": "/a.pt"}, 400, "absolute path of a .safetensors file"),
        ({"name": "new", "file": "a.safetensors"}, 400, "absolute path of a .safetensors file"),
        ({"name": "a b", "file": "/a.safetensors"}, 400, "letters, digits"),
        ({"name": "new"}, 400, "give one of them"),
        ({"name": "new", "file": "/a.safetensors", "repository": "a/b"}, 400, "give one of them"),
        ({"name": "new", "file": "/a.safetensors", "revision": "1"}, 400, "belong to a repository"),
        ({"name": "new", "repository": "a/b", "weight_name": "a.bin"}, 400, "name of a .safetensors file"),
        ({"name": "new", "repository": "a/b"}, 400, "weight_name is missing"),
    ],
    ids=str,
)
async def test_an_adapter_that_cannot_be_added_is_refused_and_nothing_changes(client, balancer, body, status, named):
    answer = await client.post("/v1/admin/adapters", json=body)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]
    assert list(balancer.adapters) == ["night", "sepia"]
    assert not balancer.controls.log.recent
    if status == 400 and "wrong" not in body.get("file", ""):
        assert not jsonschema.Draft202012Validator(AdapterBody.model_json_schema()).is_valid(body)


@pytest.mark.parametrize(
    "body",
    [
        {"name": "a", "file": "/a.safetensors", "repository": None},
        {"name": "a", "repository": "b/c", "weight_name": "c.safetensors", "revision": "1"},
    ],
    ids=str,
)
def test_the_schema_of_an_adapter_accepts_what_is_accepted(body):
    assert jsonschema.Draft202012Validator(AdapterBody.model_json_schema()).is_valid(body)
    assert parsed(AdapterBody, json.dumps(body).encode()).weights.reference == body.get("file", "b/c")


async def test_an_adapter_that_does_not_exist_cannot_be_removed(client):
    answer = await client.delete("/v1/admin/adapters/noon")
    assert answer.status_code == 404
    assert "there are night, sepia" in answer.json()["error"]["message"]


async def test_other_load_balancers_follow_what_an_administrator_changed(pool, plan, family, balancer):
    other = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=8))
    await balancer.controls.add_adapter("ops", "chalk", AdapterWeights("/weights/chalk.safetensors"))
    balancer.controls.remove_adapter("ops", "sepia")
    other.controls.follow(json.loads(json.dumps(balancer.controls.to_dict())))
    assert dict(other.adapters) == dict(balancer.adapters)
    assert list(other.adapters) == ["chalk", "night"]
