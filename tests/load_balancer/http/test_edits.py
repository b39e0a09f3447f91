"""``POST /v1/images/edits``: what clients send reaches workers as sound pictures of one size, or is refused."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageCms, ImageOps

from load_balancer.http.api import create_app
from load_balancer.http.api_settings import ApiSettings
from load_balancer.http.openapi import EDITS, GENERATIONS
from load_balancer.runner.balancer import Balancer
from load_balancer.runner.balancer_settings import BalancerSettings
from testing.pictures import gradient, mask, png, transparent
from weir.config import FamilyConfig, LimitsConfig
from weir.core import ImageRequest, ImageSize
from weir.plan import HEAVY, LIGHT

SQUARE, WIDE, SMALL = ImageSize(64, 64), ImageSize(96, 64), ImageSize(48, 48)
PICTURE = png(gradient(SQUARE))
LIMITS = LimitsConfig(image_bytes=64 * 1024, image_pixels=512 * 512)
ALIASES = {"gpt-image-1": "toy", "dall-e-2": "toy"}
PROMPT = {"prompt": "a red circle"}


@pytest.fixture
async def client(pool, plan, family, profile) -> AsyncIterator[httpx.AsyncClient]:
    sized = FamilyConfig.model_validate(family.model_dump() | {"sizes": [32, "96x64"]})
    balancer = Balancer(pool, plan, sized, BalancerSettings(slo_s=5.0, queued=64), profile=profile)
    balancer.dispatcher.sync(await pool.describe())
    app = create_app(balancer, sized, ApiSettings(limits=LIMITS, aliases=ALIASES))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://weir") as client:
        yield client


async def edit(client: httpx.AsyncClient, image: bytes = PICTURE, mask: bytes | None = None, **fields: Any) -> Any:
    files = {"image": ("a.png", image)} | ({} if mask is None else {"mask": ("m.png", mask)})
    return await client.post(EDITS, data=PROMPT | fields, files=files)


def sent(pool: Any) -> ImageRequest:
    """What the worker of the last run got."""
    return ImageRequest.from_dict(pool.calls[-1][2] | {"traceparent": ""}, 0.0)


def opened(picture: bytes | None) -> Image.Image:
    assert picture is not None
    return Image.open(io.BytesIO(picture))


def refusal(answer: httpx.Response, status: int = 400) -> tuple[str | None, str]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["param"], error["message"]


# ------------------------------------------------------------------------------------------- clients as they are


async def test_the_openai_package_edits_an_image(client, pool):
    async with openai.AsyncOpenAI(base_url="http://weir/v1", api_key="none", http_client=client) as caller:
        answer = await caller.images.edit(
            image=("a.png", PICTURE),
            mask=("m.png", png(transparent(SQUARE))),
            prompt="a red circle",
            model="gpt-image-1",
            n=2,
            size="auto",
            quality="high",
            background="auto",
            input_fidelity="high",
            output_format="webp",
            output_compression=90,
            user="somebody",
            extra_body={"strength": 0.5, "seed": 7},
        )
    assert [opened(base64.b64decode(it.b64_json or "")).format for it in answer.data or []] == ["WEBP", "WEBP"]
    about = (answer.data or [])[0].to_dict()["weir"]
    assert about["seed"] == 7
    assert about["edit"] == {"strength": 0.5, "masked": True, "first_step": 0}  # as the worker reports
    assert about["cache"] is None


async def test_the_openai_package_follows_the_stream_of_an_edit(client, pool):
    pool.confidence = 0.0
    async with openai.AsyncOpenAI(base_url="http://weir/v1", api_key="none", http_client=client) as caller:
        stream = await caller.images.edit(image=PICTURE, prompt="a red circle", stream=True, partial_images=1)
        events = [event async for event in stream]
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert [type(event).__name__ for event in events] == ["ImageEditPartialImageEvent", "ImageEditCompletedEvent"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"model": "gpt-image-1", "n": "1", "size": "64x64"}, "image"),
        ({"model": "dall-e-2", "response_format": "b64_json", "background": "auto"}, "image[]"),
        ({"model": "gpt-image-1", "user": "default_user_id", "stream": "False", "size": ""}, "image[]"),
    ],
    ids=["open-webui", "open-webui, a list", "LiteLLM proxy"],
)
async def test_forms_of_clients_get_an_image(client, data, name):
    answer = await client.post(EDITS, data=PROMPT | data, files=[(name, ("image.png", PICTURE, "image/png"))])
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"]


async def test_an_edit_may_be_json_with_data_urls(client, pool):
    urls = [f"data:image/png;base64,{base64.b64encode(it).decode()}" for it in (PICTURE, png(transparent(SQUARE)))]
    body = {**PROMPT, "images": [{"image_url": urls[0]}], "mask": {"image_url": urls[1]}, "strength": 0.5}
    answer = await client.post(EDITS, json=body)
    assert answer.status_code == 200, answer.text
    found = sent(pool).edit
    assert found is not None
    assert (found.strength, opened(found.image).tobytes()) == (0.5, gradient(SQUARE).tobytes())


# ---------------------------------------------------------------------------------- what workers get


async def test_every_variant_gets_the_picture_and_nothing_of_the_cache(client, pool):
    pool.confidence = 0.0
    assert (await edit(client, cache="off")).status_code == 200
    requests = [ImageRequest.from_dict(it | {"traceparent": ""}, 0.0) for _, _, it in pool.calls]
    assert [variant for _, variant, _ in pool.calls] == [LIGHT, HEAVY]
    assert all(it.edit == requests[0].edit is not None for it in requests)
    assert all((it.resume, it.warm_start, it.capture) == (None, None, None) for it in requests)


@pytest.mark.parametrize(("size", "expected"), [(SQUARE, SQUARE), (WIDE, WIDE), (ImageSize(300, 190), WIDE)], ids=str)
@pytest.mark.parametrize("given", [None, "auto"])
async def test_the_size_is_that_of_the_picture_or_the_nearest_one(client, pool, size, expected, given):
    answer = await edit(client, png(gradient(size)), **({} if given is None else {"size": given}))
    assert answer.json()["size"] == str(expected)
    assert sent(pool).size == expected
    assert opened(sent(pool).edit.image).size == expected


async def test_a_picture_of_another_shape_is_cropped_around_its_centre(client, pool):
    await edit(client, png(gradient(ImageSize(256, 128))), size="64x64", mask=png(transparent(ImageSize(256, 128))))
    found = sent(pool).edit
    left, right = (opened(found.image).getpixel((column, 32)) for column in (0, 63))
    assert left[0] == pytest.approx(64, abs=4)  # a quarter of the way to the right
    assert right[0] == pytest.approx(192, abs=4)
    assert opened(found.mask).tobytes() == mask(SQUARE).tobytes()


@pytest.mark.parametrize(("masked", "strength"), [(False, 0.75), (True, 1.0)])
async def test_the_default_strength_generates_what_a_mask_marks_anew(client, pool, masked, strength):
    await edit(client, mask=png(transparent(SQUARE)) if masked else None)
    assert sent(pool).edit.strength == strength


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_pictures_are_turned_upright_as_their_exif_data_says(client, pool, orientation):
    upright = gradient(SQUARE)
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    exif = Image.Exif()
    exif[0x0112] = back
    turned = Image.open(io.BytesIO(png(upright, exif=exif)))
    stored = ImageOps.exif_transpose(turned)
    exif[0x0112] = orientation
    stored.info.clear()
    await edit(client, png(stored, exif=exif))
    assert opened(sent(pool).edit.image).tobytes() == upright.tobytes()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", SQUARE, 77), (77, 77, 77)),
        (Image.new("1", SQUARE, 1), (255, 255, 255)),
        (Image.new("P", SQUARE, 0), (0, 0, 0)),
        (Image.new("I;16", SQUARE, 0x8000), (128, 128, 128)),
        (Image.new("RGBA", SQUARE, (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", SQUARE, (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("LA", SQUARE, (0, 255)), (0, 0, 0)),
    ],
    ids=["grey", "black and white", "palette", "16 bits", "transparent", "opaque", "grey with alpha"],
)
async def test_pictures_of_every_mode_become_rgb(client, pool, picture, expected):
    assert (await edit(client, png(picture))).status_code == 200
    assert opened(sent(pool).edit.image).getpixel((32, 32)) == expected


@pytest.mark.parametrize(
    ("picture", "colour"),
    [
        (Image.new("RGB", SQUARE, (9, 9, 9)).quantize(4), 0),
        (Image.new("RGB", SQUARE, (9, 9, 9)), (9, 9, 9)),
        (Image.new("L", SQUARE, 9), 9),
    ],
    ids=["palette", "rgb", "grey"],
)
async def test_a_transparent_colour_is_put_on_white(client, pool, picture, colour):
    await edit(client, png(picture, transparency=colour))
    assert opened(sent(pool).edit.image).getpixel((32, 32)) == (255, 255, 255)


async def test_a_photo_of_cmyk_becomes_rgb(client, pool):
    assert (await edit(client, png(Image.new("CMYK", SQUARE, (0, 255, 255, 0)), format="JPEG"))).status_code == 200
    red, green, blue = opened(sent(pool).edit.image).getpixel((32, 32))
    assert (red, green, blue) == (pytest.approx(254, abs=3), pytest.approx(0, abs=3), pytest.approx(0, abs=3))


async def test_the_metadata_of_a_photo_reaches_no_worker(client, pool):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    await edit(client, png(gradient(SQUARE), exif=exif, icc_profile=profile))
    assert opened(sent(pool).edit.image).info == {}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
async def test_the_formats_of_openai_are_read(client, kind):
    assert (await edit(client, png(gradient(SQUARE), format=kind))).status_code == 200


# ------------------------------------------------------------------------------------------------ refusals


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says that it has many pixels."""
    rows = png(Image.new("1", (8, 8)))
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + rows[24:29]
    return rows[:12] + header + zlib.crc32(header).to_bytes(4, "big") + rows[33:]


def animated(kind: str) -> bytes:
    frames = [gradient(SQUARE), mask(SQUARE).convert("RGB")]
    return png(frames[0], format=kind, save_all=True, append_images=frames[1:])


BROKEN = {
    "no image": (b"nothing", "is no image of these formats"),
    "empty": (b"", "is no image of these formats"),
    "another format": (png(gradient(SQUARE), format="GIF"), "is no image of these formats"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is no image of these formats"),
    "cut off": (PICTURE[: len(PICTURE) // 2], "is damaged"),
    "a JPEG cut off": (png(gradient(SQUARE), format="JPEG")[:400], "is damaged"),
    "too many pixels": (png(Image.new("1", (1024, 1024))), "is 1024x1024; accepted: at most 262144 pixels"),
    "a bomb": (bomb(10_000), "accepted: at most 262144 pixels"),
    "a larger bomb": (bomb(60_000), "accepted: at most 262144 pixels"),
    "an animated PNG": (animated("PNG"), "is animated"),
    "an animated WebP": (animated("WEBP"), "is animated"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("param", ["image", "mask"])
async def test_a_broken_picture_is_refused_by_its_name_before_any_work(client, pool, name, param):
    broken, problem = BROKEN[name]
    answer = await edit(client, broken) if param == "image" else await edit(client, mask=broken)
    found, message = refusal(answer)
    assert found == param
    assert message.startswith(param)
    assert problem in message
    assert pool.calls == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (png(transparent(WIDE)), "is 96x64; accepted: the size of the image, 64x64"),
        (png(mask(SQUARE)), "has no alpha channel"),
        (png(Image.new("RGBA", SQUARE, "black")), "has no fully transparent area"),
    ],
    ids=["another size", "no alpha", "nothing transparent"],
)
async def test_a_mask_that_marks_nothing_is_refused(client, pool, given, problem):
    found, message = refusal(await edit(client, mask=given))
    assert found == "mask"
    assert problem in message
    assert pool.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"strength": "0"}, "strength"),
        ({"strength": "1.01"}, "strength"),
        ({"strength": "much"}, "strength"),
        ({"strength": "NaN"}, "strength"),
        ({"n": "5"}, "n"),
        ({"n": "1.5"}, "n"),
        ({"stream": "perhaps"}, "stream"),
        ({"size": "65x64"}, "size"),
        ({"prompt": " "}, "prompt"),
        ({"cache": "read"}, "cache"),
        ({"background": "transparent"}, "background"),
        ({"seed": "-2"}, "seed"),
        ({"markup": "1"}, "markup"),
    ],
    ids=lambda it: "=".join(*it.items()) if isinstance(it, dict) else None,
)
async def test_a_field_out_of_its_range_is_refused_by_its_name(client, pool, fields, param):
    assert refusal(await edit(client, **fields))[0] == param
    assert pool.calls == []


@pytest.mark.parametrize(
    ("files", "param", "problem"),
    [
        ([], "image", "0 pictures"),
        ([("image", PICTURE), ("image", PICTURE)], "image", "2 pictures"),
        ([("image[]", PICTURE)] * 16, "image", "16 pictures"),
        ([("image", PICTURE), ("mask", PICTURE), ("mask", PICTURE)], "mask", "2 pictures"),
        ([("image", PICTURE), ("markup", PICTURE)], "markup", "accepted: image and mask"),
        ([("image", PICTURE)] * 30, None, "Too many files"),
    ],
    ids=["none", "two", "sixteen", "two masks", "another name", "too many"],
)
async def test_exactly_one_picture_is_edited(client, pool, files, param, problem):
    form = [(name, ("a.png", content)) for name, content in files]
    answer = await client.post(EDITS, data=PROMPT, files=form or [("seed", (None, "1"))])
    found, message = refusal(answer)
    assert found == param
    assert problem in message
    assert pool.calls == []


async def test_a_picture_larger_than_the_limit_is_refused(client, pool):
    large = PICTURE + bytes(LIMITS.image_bytes)
    assert refusal(await edit(client, large), 413) == (
        "image",
        f"image has {len(large)} bytes; accepted: at most {LIMITS.image_bytes}",
    )
    assert "the body is too large" in refusal(await edit(client, 3 * large), 413)[1]
    url = f"data:image/png;base64,{base64.b64encode(large).decode()}"
    assert refusal(await client.post(EDITS, json={**PROMPT, "images": [{"image_url": url}]}), 413)[0] == "image"
    assert pool.calls == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"images": [{"image_url": "https://example.com/a.png"}]}, "image"),
        ({"images": [{"file_id": "file-1"}]}, "image"),
        ({"images": [{"image_url": "data:image/png;base64,%%%"}]}, "image"),
        ({"images": ["data:image/png;base64,AAAA"]}, "image"),
        ({"images": {}}, "images"),
        ({}, "image"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}], "mask": "none"}, "mask"),
        ({"images": [{"image_url": "data:image/png;base64,AAAA"}], "n": "1"}, "n"),
    ],
    ids=["URL", "file id", "no base64", "a string", "no list", "nothing", "mask", "a text for a number"],
)
async def test_json_is_strict_and_nothing_is_fetched(client, pool, body, param):
    assert refusal(await client.post(EDITS, json={**PROMPT, **body}))[0] == param
    assert pool.calls == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b"nothing"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nab',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 9000 + b"\r\n\r\na\r\n--x--"),
        ("application/x-www-form-urlencoded", b"prompt=a"),
        ("application/json", b"[" * 20_000),
        ("application/json", b"\xff"),
        ("application/json", b"7"),
    ],
)
async def test_a_body_that_is_no_form_is_refused(client, pool, kind, body):
    refusal(await client.post(EDITS, content=body, headers={"content-type": kind}))
    assert pool.calls == []


# ------------------------------------------------------------------------------------------------------ the rest


async def test_a_key_belongs_to_one_picture(client, pool):
    key = {"Idempotency-Key": "once"}

    async def ask(picture: bytes) -> httpx.Response:
        return await client.post(EDITS, data=PROMPT, files={"image": ("a.png", picture)}, headers=key)

    first, again = await ask(PICTURE), await ask(PICTURE)
    assert first.content == again.content
    assert len(pool.calls) == 1
    assert (await ask(png(gradient(WIDE)))).status_code == 422
    plain = await client.post(GENERATIONS, json=PROMPT, headers=key)
    assert plain.status_code == 422


async def test_an_edit_may_be_fetched_later(client):
    files = {"image": ("a.png", PICTURE)}
    answer = await client.post(EDITS, data=PROMPT, files=files, headers={"Prefer": "respond-async, wait=5"})
    assert answer.status_code in (200, 202)
    state = (await client.get(f"{GENERATIONS}/{answer.headers['x-request-id']}")).json()
    assert state["status"] == "succeeded"
    assert state["result"]["data"][0]["weir"]["edit"]["strength"] == 0.75


async def test_the_openapi_document_describes_the_form(client):
    described = (await client.get("/openapi.json")).json()["paths"][EDITS]["post"]["requestBody"]
    schema = described["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["image", "prompt"]
    assert schema["properties"]["image"]["format"] == "binary"
    assert schema["properties"]["strength"]["maximum"] == 1
    assert json.dumps(schema).count('"null"') == 0
