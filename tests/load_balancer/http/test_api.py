"""The HTTP API, in process, over a fake pool."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator

import httpx
import jsonschema
import pytest
from PIL import Image

import weir
from load_balancer.http.api import create_app
from load_balancer.http.api_settings import ApiSettings
from load_balancer.http.model_list import defaults
from load_balancer.http.openapi import FILES, GENERATIONS
from load_balancer.http.schema import RequestRules
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from load_balancer.runner.generation_request import GenerationRequest
from testing.toy_family import with_variants
from tests.load_balancer.malformed_requests import BODIES, GOOD
from weir.config import LimitsConfig
from weir.core import ImageSize
from weir.errors import InvalidRequest, Overloaded
from weir.plan import HEAVY, LIGHT

JSON = {"content-type": "application/json"}


@pytest.fixture
async def balancer(pool, plan, family, profile) -> Balancer:
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=8), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    return balancer


@pytest.fixture
async def client(balancer, family) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(balancer, family)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


async def test_an_answer_has_the_image_and_how_it_was_generated(client):
    answer = await client.post(GENERATIONS, json={**GOOD, "seed": 7})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"created", "data", "output_format", "size", "quality", "background"}
    (item,) = body["data"]
    assert Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).format == "PNG"
    about = item["weir"]
    assert about.pop("id")
    assert about.pop("latency_s") >= 0
    made_with = about.pop("made_with")
    assert made_with["weir"] == weir.__version__
    assert made_with["pipeline"] == "nobody/nothing@latest"
    assert about == {
        "path": "light",
        "model": "toy-light",
        "confidence": 0.9,
        "heavy_confidence": None,
        "draws": 0,
        "seed": 7,
        "steps": 2,
        "batch_size": 1,
        "queue_s": 0.001,
        "compute_s": 0.01,
        "plan_version": 1,
        "cache": None,
        "edit": None,
        "unused_tokens": 0,
        "unused_negative_tokens": 0,
        "emulated": True,
    }


async def test_an_answer_says_how_many_tokens_of_the_prompts_were_not_used(client, pool, monkeypatch):
    generate = pool.generate

    async def with_unused(*call):
        return await generate(*call) | {"unused_tokens": 293, "unused_negative_tokens": 4}

    monkeypatch.setattr(pool, "generate", with_unused)
    answer = await client.post(GENERATIONS, json={**GOOD, "prompt": "a long prompt " * 30})
    about = answer.json()["data"][0]["weir"]
    assert (about["unused_tokens"], about["unused_negative_tokens"]) == (293, 4)


@pytest.mark.parametrize(("output_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
async def test_the_image_has_the_requested_format(client, output_format, kind):
    answer = await client.post(GENERATIONS, json={**GOOD, "output_format": output_format})
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(content)).format == kind
    assert answer.json()["output_format"] == output_format


async def test_an_image_requested_as_url_can_be_fetched(client):
    answer = await client.post(GENERATIONS, json={**GOOD, "n": 2, "response_format": "url", "output_format": "webp"})
    urls = [item["url"] for item in answer.json()["data"]]
    assert [url.endswith(".webp") for url in urls] == [True, True]
    assert urls[0] != urls[1]
    fetched = await client.get(urls[1])
    assert fetched.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(fetched.content)).format == "WEBP"


@pytest.mark.parametrize("name", ["nothing.png", "..%2F..%2Fetc%2Fpasswd", "%00"])
async def test_an_unknown_file_is_a_404(client, name):
    answer = await client.get(f"{FILES}/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "toy"},
        {"size": "auto"},
        {"size": "32x32"},
        {"quality": "hd", "style": "vivid", "background": "opaque", "moderation": "low", "user": "me"},
        {"output_format": "jpeg", "output_compression": 50},
        {"stream": False, "partial_images": 0},
        {"negative_prompt": "blue", "seed": 2**64 - 1, "num_inference_steps": 100, "guidance_scale": 30},
        {"guidance_scale": 0},
        {"loras": []},
        {"seed": 7.0, "n": 1.0},
        {"n": None, "size": None, "model": None, "seed": None, "user": None},
        {"prompt": "圆 🔴 \u0000"},
    ],
    ids=json.dumps,
)
async def test_everything_that_openai_and_the_extensions_allow_is_accepted(client, fields):
    answer = await client.post(GENERATIONS, json={**GOOD, **fields})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("role", [LIGHT, HEAVY])
async def test_a_variant_can_be_forced_by_its_model_name(client, pool, role):
    pool.confidence = 0.0
    answer = await client.post(GENERATIONS, json={**GOOD, "model": f"toy/{role}"})
    assert answer.json()["data"][0]["weir"]["path"] == role
    assert [called for _, called, _ in pool.calls] == [role]


async def test_the_models_are_the_cascade_and_its_variants(client):
    models = (await client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["toy", "toy/light", "toy/heavy"]


async def test_each_model_lists_its_sizes_and_its_own_values_of_the_fields_that_suit_it(client):
    models = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
    assert all(model["sizes"] == ["64x64", "32x32"] for model in models.values())
    heavy = {"size": "64x64", "negative_prompt": "", "num_inference_steps": 50, "guidance_scale": 2.0}
    heavy["sampler"] = "ddim"
    assert models["toy"]["defaults"] == models["toy/heavy"]["defaults"] == heavy
    assert models["toy/light"]["defaults"] == {"size": "64x64"}


@pytest.mark.parametrize(
    ("variant", "suits"),
    [
        (None, {"size", "num_inference_steps", "sampler", "cache"}),  # its last variant runs without guidance
        ("light", {"size", "negative_prompt"}),  # guided, but only the last variant takes a client's own values
        ("heavy", {"size", "num_inference_steps", "sampler", "cache"}),
    ],
)
def test_the_listed_fields_depend_on_the_guidance_the_variant_and_the_cache(family, variant, suits):
    family = with_variants(family, light={"guidance": 3.0}, heavy={"guidance": 1.0})
    assert set(defaults(family, variant, "read-write")) == suits


async def test_health_is_about_the_process_and_readiness_about_the_pool(client, balancer):
    assert (await client.get("/readyz")).json()["replicas"]["heavy"] == {"planned": 2, "ready": 2}
    balancer.dispatcher.sync([])
    assert (await client.get("/healthz")).status_code == 200
    ready = await client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["pending"] == ["light: 0 of 1 replicas ready", "heavy: 0 of 2 replicas ready"]
    assert ready.json()["plan"]["version"] == 1


@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_body_is_refused_with_the_field_and_what_is_accepted(client, pool, name):
    body, status, param = BODIES[name]
    answer = await client.post(GENERATIONS, content=body, headers=JSON)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert "Traceback" not in answer.text
    if param in GenerationFields:
        assert "accepted: " in error["message"]
        assert len(error["message"]) < 400
    assert pool.calls == []


SAMPLED = ("dpmpp-2m-karras", "lcm")


@pytest.mark.parametrize(
    ("body", "param", "named"),
    [
        ({"sampler": "dpmpp-2m-karras"}, None, ""),
        ({"sampler": "ddim", "model": "toy/light"}, None, ""),
        ({"sampler": "lcm", "num_inference_steps": 50}, None, ""),
        ({"sampler": None}, None, ""),
        ({"sampler": "unipc"}, "sampler", "accepted by heavy: ddim or dpmpp-2m-karras or lcm"),
        ({"sampler": "DPM++ 2M"}, "sampler", "accepted: ddim or dpmpp-2m-karras or lcm"),
        ({"sampler": "lcm", "model": "toy/light"}, "sampler", "accepted by light: ddim"),
        ({"sampler": "lcm", "num_inference_steps": 51}, "num_inference_steps", "lcm accepts 1 to 50"),
    ],
    ids=str,
)
def test_a_sampler_is_one_that_the_family_allows(family, body, param, named):
    rules = RequestRules(family.model_copy(update={"samplers": SAMPLED}), LimitsConfig())
    raw = {"prompt": "a red circle", **body}
    schema = rules.described()["requestBody"]["content"]["application/json"]["schema"]
    described = jsonschema.Draft202012Validator(schema).is_valid(raw)
    if param is None:
        assert rules.read(json.dumps(raw).encode()).sampler == body["sampler"]
        assert described
    else:
        with pytest.raises(InvalidRequest, match=named) as refused:
            rules.read(json.dumps(raw).encode())
        assert refused.value.param == param
        assert not described


async def test_an_answer_names_the_sampler_of_its_image(pool, plan, family, profile):
    family = family.model_copy(update={"samplers": SAMPLED})
    balancer = Balancer(pool, plan, family, BalancerSettings(slo_s=5.0, queued=8), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    for asked, named in ((None, "ddim"), ("lcm", "lcm")):
        wanted = GenerationRequest("a", ImageSize(64, 64), variant=HEAVY, sampler=asked)
        (image,) = await balancer.generate(wanted)
        assert image.made_with["scheduler"] == named


GenerationFields = {
    "prompt",
    "model",
    "n",
    "size",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "stream",
    "quality",
    "loras",
}


async def test_a_large_body_is_refused_without_being_read(client):
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 2**14

    answer = await client.post(GENERATIONS, content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert read <= 6


async def test_a_body_that_does_not_arrive_in_time_is_refused(balancer, family):
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.Event().wait()

    app = create_app(balancer, family, ApiSettings(limits=LimitsConfig(body_s=0.05)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        answer = await client.post(GENERATIONS, content=slow(), headers=JSON)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "body_too_slow"


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_another_content_type_is_refused(client, kind):
    answer = await client.post(GENERATIONS, content=json.dumps(GOOD).encode(), headers={"content-type": kind})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 400), ("br", 400), ("Identity", 200)])
async def test_a_compressed_body_is_refused_by_its_encoding(client, encoding, status):
    headers = {"content-type": "application/json", "content-encoding": encoding}
    answer = await client.post(GENERATIONS, content=json.dumps(GOOD).encode(), headers=headers)
    assert answer.status_code == status
    if status == 400:
        assert f"the content encoding is {encoding}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", GENERATIONS, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/images/generation", 404),
        ("POST", "/v1/images/variations", 404),
        ("GET", "/v1/images/files/", 404),
    ],
)
async def test_a_wrong_method_or_path_is_refused_in_the_same_format(client, method, path, status):
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_wrong_method_is_refused_with_all_methods_of_the_path(client):
    answer = await client.put(f"{GENERATIONS}/abc")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD"


async def test_an_unexpected_failure_is_a_500_without_details(client, pool, monkeypatch):
    monkeypatch.setattr(Balancer, "begin", lambda *_: 1 / 0)
    answer = await client.post(GENERATIONS, json=GOOD)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "division" not in answer.text


async def test_overload_of_the_system_is_a_503_with_whole_seconds_to_wait(client, balancer):
    balancer.admission.in_flight = 8
    answer = await client.post(GENERATIONS, json=GOOD)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "overloaded"
    balancer.admission.in_flight = 0
    assert (await client.post(GENERATIONS, json=GOOD)).status_code == 200


@pytest.mark.parametrize(("wait_s", "reported"), [(None, 1), (0.0, 1), (1.2, 2), (1e9, 600), (float("inf"), 600)])
async def test_every_refusal_has_retry_after(client, monkeypatch, wait_s, reported):
    def refuse(*_: object, **__: object) -> None:
        raise Overloaded("too much to do", retry_after_s=wait_s)

    monkeypatch.setattr(Balancer, "begin", refuse)
    assert int((await client.post(GENERATIONS, json=GOOD)).headers["retry-after"]) == reported


async def test_a_pool_without_replicas_is_a_503_with_seconds_to_wait(client, balancer):
    balancer.dispatcher.sync([])
    answer = await client.post(GENERATIONS, json=GOOD)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


async def test_the_api_describes_itself(client):
    described = (await client.get("/openapi.json")).json()
    schema = described["paths"][GENERATIONS]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "seed", "num_inference_steps"} <= set(schema["properties"])


@pytest.mark.parametrize("viewer", ["/docs", "/redoc"])
async def test_no_api_viewer_is_served(client, viewer):
    assert (await client.get(viewer)).status_code == 404
