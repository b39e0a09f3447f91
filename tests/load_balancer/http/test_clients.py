"""Default requests of clients are answered with an image: chat front ends, proxies, openai packages, browsers, curl."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from PIL import Image

from load_balancer.http.api_keys import ApiKeys, append_key, digest, new_key
from load_balancer.http.openapi import FILES, GENERATIONS
from load_balancer.http.schema import OPENAI_SIZES
from tests.load_balancer.malformed_requests import GOOD
from weir.config import FamilyConfig, HttpConfig, KeyConfig, LimitsConfig, load_service
from weir.errors import ConfigError

JSON = {"content-type": "application/json"}
ALIASES = {name: "toy" for name in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1.5", "gpt-image-2")}
ALIASES["quick"] = "toy/light"

#: Client → the body of its default request, and the field in which it expects the image.
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "open-webui": ({"model": "dall-e-2", "n": 1, "size": "512x512", "response_format": "b64_json"}, "b64_json"),
    "open-webui, gpt-image": ({"model": "gpt-image-1", "n": 1, "size": "auto"}, "b64_json"),
    "open-webui, no size": ({"model": "gpt-image-1.5", "n": 1}, "b64_json"),
    "LibreChat, DALL-E 3": (
        {"model": "dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1},
        "url",
    ),
    "LibreChat, DALL-E 3, wide": (
        {"model": "dall-e-3", "quality": "hd", "style": "natural", "size": "1792x1024", "n": 1},
        "url",
    ),
    "LibreChat, OpenAI image tool": (
        {
            "model": "gpt-image-1",
            "n": 1,
            "background": "auto",
            "output_format": "png",
            "quality": "auto",
            "size": "auto",
        },
        "b64_json",
    ),
    "LibreChat, OpenAI image tool, WebP": (
        {
            "model": "gpt-image-1",
            "n": 1,
            "background": "auto",
            "output_format": "webp",
            "output_compression": 100,
            "quality": "auto",
            "size": "auto",
        },
        "b64_json",
    ),
    "LiteLLM": ({"model": "dall-e-2"}, "url"),
    "LiteLLM proxy, with its user": ({"model": "gpt-image-1", "user": "default_user_id"}, "b64_json"),
    "openai, Python and JavaScript": ({}, "b64_json"),
    "openai, with a model": ({"model": "gpt-image-2"}, "b64_json"),
    "openai, every field of a GPT model": (
        {
            "model": "gpt-image-2",
            "background": "opaque",
            "complexity": "medium",
            "moderation": "auto",
            "n": 1,
            "output_compression": 90,
            "output_format": "jpeg",
            "partial_images": 0,
            "quality": "xhigh",
            "safety_identifier": "somebody",
            "size": "1536x1024",
            "stream": False,
            "user": "somebody",
        },
        "b64_json",
    ),
    "openai, every field null": (
        dict.fromkeys(
            ("background", "model", "moderation", "n", "output_compression", "output_format", "partial_images")
        )
        | dict.fromkeys(("quality", "response_format", "size", "stream", "style", "user")),
        "b64_json",
    ),
}


@pytest.fixture
async def client(serving) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(aliases=ALIASES) as client:
        yield client


@pytest.mark.parametrize("name", BODIES)
async def test_default_requests_of_clients_get_an_image_in_the_expected_field(client, name):
    body, where = BODIES[name]
    answer = await client.post(GENERATIONS, json={**GOOD, **body})
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["data"]
    assert {"b64_json", "url"} & set(item) == {where}
    content = base64.b64decode(item[where]) if where == "b64_json" else (await client.get(item["url"])).content
    assert Image.open(io.BytesIO(content)).format


async def test_the_openai_package_finds_the_image_and_the_model(client):
    async with openai.AsyncOpenAI(base_url="http://weir/v1", api_key="none", http_client=client) as caller:
        answer = await caller.images.generate(prompt="a red circle", model="dall-e-3", quality="hd", size="1024x1024")
        assert (answer.data or [])[0].url.startswith(f"http://weir{FILES}/")
        answer = await caller.images.generate(prompt="a red circle", extra_body={"seed": -1})
        assert (answer.data or [])[0].b64_json
        assert (await caller.models.retrieve("toy/light")).id == "toy/light"
        assert [model.id async for model in caller.models.list()][:2] == ["toy", "toy/light"]


@pytest.mark.parametrize("seed", [-1, None, -1.0])
async def test_minus_one_and_null_are_any_seed(client, seed):
    seeds = {
        (await client.post(GENERATIONS, json={**GOOD, "seed": seed})).json()["data"][0]["weir"]["seed"]
        for _ in range(3)
    }
    assert len(seeds) == 3
    assert all(0 <= it < 2**53 for it in seeds)  # integers that every client can read and send exactly


@pytest.mark.parametrize("seed", [0, 2**32, 2**53 + 1, 2**63, 2**64 - 1])
async def test_all_64_bits_of_a_seed_count(client, pool, seed):
    answer = await client.post(GENERATIONS, json={**GOOD, "seed": seed})
    assert answer.json()["data"][0]["weir"]["seed"] == seed
    assert [request["seed"] for _, _, request in pool.calls] == [seed]


@pytest.mark.parametrize("seed", [-2, 2**64, 1.5, "7"])
async def test_an_invalid_seed_is_refused_with_the_range(client, seed):
    answer = await client.post(GENERATIONS, json={**GOOD, "seed": seed})
    assert answer.status_code == 400
    assert f"accepted: an integer from 0 to {2**64 - 1}; -1 is any" in answer.json()["error"]["message"]


@pytest.mark.parametrize("size", OPENAI_SIZES)
async def test_a_size_of_openai_gives_the_nearest_size_and_reports_it(client, pool, size):
    answer = (await client.post(GENERATIONS, json={**GOOD, "size": size})).json()
    assert (answer["size"], answer["requested_size"]) == ("64x64", size)
    assert [request["size"] for _, _, request in pool.calls] == ["64x64"]


def sized(family: FamilyConfig, **sizes: Any) -> FamilyConfig:
    return FamilyConfig.model_validate(family.model_dump() | sizes)


@pytest.mark.parametrize(
    ("asked", "given"),
    [("1024x1024", "1024x1024"), ("1792x1024", "1344x1344"), ("256x256", "512x512"), ("1024x1536", "1344x1344")],
)
async def test_the_nearest_size_is_the_one_of_the_nearest_area(serving, family, asked, given):
    async with serving(sized(family, size=1024, sizes=[512, 1344]), aliases=ALIASES) as client:
        answer = (await client.post(GENERATIONS, json={**GOOD, "size": asked})).json()
    assert answer["size"] == given
    assert answer.get("requested_size") == (None if asked == given else asked)


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("1216x832", "1216x832"),
        ("auto", "1024x1024"),
        ("1536x1024", "1216x832"),
        ("1024x1536", "832x1216"),
        ("1024x1792", "832x1216"),
        ("512x512", "1024x1024"),
    ],
)
async def test_the_nearest_size_has_the_nearest_shape(serving, family, pool, asked, given):
    async with serving(sized(family, size=1024, sizes=["1216x832", "832x1216"]), aliases=ALIASES) as client:
        answer = (await client.post(GENERATIONS, json={**GOOD, "size": asked})).json()
    assert answer["size"] == given
    assert [request["size"] for _, _, request in pool.calls] == [given]


ANY = {"multiple": 32, "least_side": 640, "most_side": 2048, "pixels": 1536 * 1024}


@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "1024x1536", "768x1280", "2048x768"])
async def test_any_size_within_the_range_is_generated_as_it_is(serving, family, pool, size):
    async with serving(sized(family, size=1024, any_size=ANY), aliases=ALIASES) as client:
        answer = (await client.post(GENERATIONS, json={**GOOD, "size": size})).json()
        models = (await client.get("/v1/models")).json()["data"]
    assert (answer["size"], answer.get("requested_size")) == (size, None)
    assert [request["size"] for _, _, request in pool.calls] == [size]
    assert models[0]["any_size"] == ANY


@pytest.mark.parametrize(
    "size", ["1000x1024", "608x1024", "2080x640", "1568x1024", "1024", "1024X1024", "01024x1024", "1024x1024 ", ""]
)
async def test_a_size_beyond_the_range_is_refused_with_the_range(serving, family, pool, size):
    async with serving(sized(family, size=1024, any_size=ANY), aliases=ALIASES) as client:
        answer = await client.post(GENERATIONS, json={**GOOD, "size": size})
        schema = (await client.get("/openapi.json")).json()["paths"][GENERATIONS]["post"]["requestBody"]
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "size"
    assert "sides of 640 to 2048 in multiples of 32 and at most 1572864 pixels" in error["message"]
    assert pool.calls == []
    named, ranged, _ = schema["content"]["application/json"]["schema"]["properties"]["size"]["anyOf"]
    assert size not in named["enum"]
    assert re.search(ranged["pattern"], size) is None


async def test_the_service_may_allow_fewer_pixels_than_the_family(serving, family):
    limits = LimitsConfig(pixels=1024 * 1024)
    async with serving(
        sized(family, size=1024, sizes=["1536x1024"], any_size=ANY), limits=limits, aliases=ALIASES
    ) as client:
        models = (await client.get("/v1/models")).json()["data"]
        answer = await client.post(GENERATIONS, json={**GOOD, "size": "1056x1024"})
    assert models[0]["sizes"] == ["1024x1024"]
    assert models[0]["any_size"] == ANY | {"pixels": 1024 * 1024}
    assert answer.status_code == 400


async def test_a_stream_reports_the_size_of_every_image(client):
    answer = await client.post(GENERATIONS, json={**GOOD, "size": "1024x1024", "stream": True})
    [event] = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert (event["size"], event["requested_size"]) == ("64x64", "1024x1024")


async def test_an_alias_is_a_name_of_its_model(client, pool):
    pool.confidence = 0.0
    assert (await client.post(GENERATIONS, json={**GOOD, "model": "quick"})).json()["data"][0]["weir"][
        "path"
    ] == "light"
    listed = {it["id"]: it["root"] for it in (await client.get("/v1/models")).json()["data"]}
    assert listed == {"toy": "toy", "toy/light": "toy/light", "toy/heavy": "toy/heavy"} | ALIASES


@pytest.mark.parametrize("path", ["toy", "toy/light", "toy%2Fheavy", "dall-e-3"])
async def test_one_model_can_be_looked_up(client, path):
    answer = await client.get(f"/v1/models/{path}")
    assert answer.status_code == 200
    assert answer.json() in (await client.get("/v1/models")).json()["data"]


@pytest.mark.parametrize("path", ["dall-e-4", "toy/medium", "toy/light/"])
async def test_an_unknown_model_is_a_404_that_mentions_aliases(client, path):
    answer = await client.get(f"/v1/models/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "`aliases` in the service file" in answer.json()["error"]["message"]


async def test_the_list_of_models_accepts_a_trailing_slash(client):
    assert (await client.get("/v1/models/")).json() == (await client.get("/v1/models")).json()


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/readyz", "/v1/models", "/v1/models/toy", "/v1/live", "/openapi.json", "/v1/nowhere"]
)
async def test_head_is_answered_like_get_without_the_body(client, path):
    head, get = await client.head(path), await client.get(path)
    assert head.status_code == get.status_code
    assert head.content == b""
    unlike = {"x-request-id"}
    if path in ("/v1/live", "/readyz"):
        unlike.add("content-length")  # times in the body vary in length
    assert {k: v for k, v in head.headers.items() if k not in unlike} == {
        k: v for k, v in get.headers.items() if k not in unlike
    }


async def test_head_of_an_image_and_of_a_request(client):
    answer = await client.post(
        GENERATIONS, json={**GOOD, "response_format": "url"}, headers={"prefer": "respond-async"}
    )
    head = await client.head(answer.headers["location"])
    assert (head.status_code, head.content) == (200, b"")
    url = (await client.post(GENERATIONS, json={**GOOD, "response_format": "url"})).json()["data"][0]["url"]
    head = await client.head(url)
    assert (head.status_code, head.headers["content-type"], head.content) == (200, "image/png", b"")


async def test_head_of_a_post_route_is_a_405(client):
    head = await client.head(GENERATIONS)
    assert (head.status_code, head.headers["allow"], head.content) == (405, "POST", b"")


@pytest.mark.parametrize(
    "body",
    [b'\xef\xbb\xbf{"prompt": "a red circle"}', b'\xef\xbb\xbf\r\n{"prompt": "a red circle"}\r\n'],
    ids=["mark", "mark and line ends"],
)
async def test_a_byte_order_mark_before_the_body_is_skipped(client, body):
    answer = await client.post(GENERATIONS, content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"prompt": "caf\u00e9"}'.encode("latin-1"), "byte 15 of the body (0xe9) is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "byte 0 of the body (0xff) is not UTF-8"),
    ],
    ids=["Latin-1", "UTF-16"],
)
async def test_a_body_in_another_encoding_is_refused_with_the_byte(client, body, expected):
    answer = await client.post(GENERATIONS, content=body, headers=JSON)
    assert answer.status_code == 400
    assert expected in answer.json()["error"]["message"]


ORIGIN = "https://chat.example.com"
ASKS = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


async def test_a_browser_on_an_allowed_origin_may_call_and_read_the_answer(serving):
    async with serving(allowed_origins=[ORIGIN]) as client:
        asked = await client.options(GENERATIONS, headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        answer = await client.post(GENERATIONS, json=GOOD, headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_preflight_requests_need_no_key_and_refusals_are_readable(serving, tmp_path: Path):
    keys = tmp_path / "keys.yaml"
    append_key(keys, KeyConfig(name="alice", sha256=digest(new_key()), tenant="acme"))
    async with serving(callers=ApiKeys(keys), allowed_origins=[ORIGIN]) as client:
        assert (await client.options(GENERATIONS, headers=ASKS)).status_code == 200
        refused = await client.post(GENERATIONS, json=GOOD, headers={"origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize("origin", ["https://evil.example.com", "http://chat.example.com", "null"])
async def test_a_browser_on_another_origin_gets_no_cors_headers(serving, origin):
    async with serving(allowed_origins=[ORIGIN]) as client:
        assert (await client.options(GENERATIONS, headers={**ASKS, "origin": origin})).status_code == 400
        answer = await client.get("/v1/models", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


async def test_without_allowed_origins_no_other_origin_may_call(client):
    assert (await client.options(GENERATIONS, headers=ASKS)).status_code == 405
    assert "access-control-allow-origin" not in (await client.get("/v1/models", headers={"origin": ORIGIN})).headers


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://Chat.example.com/", ORIGIN),
        ("https://chat.example.com:443", ORIGIN),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("any", "*"),
    ],
)
def test_a_valid_origin_is_accepted(given: str, origin: str):
    assert HttpConfig(allowed_origins=(given,)).allowed_origins == (origin,)


@pytest.mark.parametrize(
    "given", ["chat.example.com", "https://a.example.com/chat", "ftp://a", "https://", "https://a:x"]
)
def test_an_invalid_origin_is_refused(given: str):
    with pytest.raises(ValueError, match=r"origin|Port"):
        HttpConfig(allowed_origins=(given,))


def service(tmp_path: Path, **fields: Any) -> Path:
    shipped = Path("deploy/configs/weir-tiny.yaml")
    known = yaml.safe_load(shipped.read_text())
    known |= {key: str((shipped.parent / known[key]).resolve()) for key in ("family", "profile")}
    path = tmp_path / "service.yaml"
    path.write_text(yaml.safe_dump(known | {"cache": {}} | fields))
    return path


def test_aliases_and_origins_are_in_the_service_file(tmp_path: Path):
    fields = {"aliases": {"a": "cascade", "b": "light", "c": "weir-tiny/heavy"}, "http": {"allowed_origins": [ORIGIN]}}
    configured, _ = load_service(service(tmp_path, **fields))
    assert configured.aliases == {"a": "weir-tiny", "b": "weir-tiny/light", "c": "weir-tiny/heavy"}
    assert configured.http.allowed_origins == (ORIGIN,)


@pytest.mark.parametrize(
    "aliases", [{"a": "nothing"}, {"a": "weir-tiny/medium"}, {"weir-tiny": "weir-tiny/light"}, {"": "weir-tiny"}]
)
def test_an_alias_of_an_unknown_model_or_with_a_used_name_is_refused(tmp_path: Path, aliases: dict[str, str]):
    with pytest.raises(ConfigError, match=r"aliases\..*of the models weir-tiny, weir-tiny/light, weir-tiny/heavy"):
        load_service(service(tmp_path, aliases=aliases))


@pytest.mark.parametrize("path", sorted(Path("deploy/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_services_have_aliases_for_the_default_models_of_clients(path: Path):
    configured, family = load_service(path)
    asked = {body["model"] for body, _ in BODIES.values() if body.get("model")}
    assert asked <= set(configured.aliases)
    assert set(configured.aliases.values()) == {family.name}
