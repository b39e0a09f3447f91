"""Reads the body of ``POST /v1/images/edits``: a form, as OpenAI's clients send it, or JSON with data URLs."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, NamedTuple

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from load_balancer.http.body import JSON, chunks, content_type, in_time, json_body
from load_balancer.http.schema import EditBody
from weir.config import LimitsConfig
from weir.errors import BodyTooLarge, InvalidRequest
from weir.json_files import parsed_json

FORM = "multipart/form-data"
#: Number of pictures that OpenAI's API takes, a mask included, and of fields of a form.
MOST_PICTURES, MOST_FIELDS = 17, 64
#: Largest body in JSON, which is in memory several times while it is read.
MOST_JSON_BYTES = 4 * 2**20
_IMAGE, _MASK = ("image", "image[]"), ("mask",)
_ONE = "one picture, in the field image; a model of this architecture edits no more than one"


class EditUpload(NamedTuple):
    """The parts of a body. The files are open within :func:`edit_upload`.

    Attributes:
        fields: JSON object of all fields that are no pictures.
    """

    fields: bytes
    image: BinaryIO
    mask: BinaryIO | None


@asynccontextmanager
async def edit_upload(request: Request, limits: LimitsConfig) -> AsyncIterator[EditUpload]:
    """Reads a body. What is large of a form is in temporary files and not in memory; JSON has to be smaller.

    Raises:
        InvalidRequest: the body is no form, or has no picture, or several.
        BodyTooLarge: the body, or a picture, is larger than the limit.
        BodyTooSlow: it did not arrive in time.
    """
    most_bytes = 2 * limits.image_bytes
    if content_type(request, FORM, JSON) == JSON:
        raw = await json_body(request, min(2 * most_bytes, MOST_JSON_BYTES), limits.upload_s)
        yield _from_json(raw, limits.image_bytes)
        return

    async def whole() -> AsyncGenerator[bytes]:
        async for chunk in chunks(request, most_bytes + limits.body_bytes):
            yield chunk
        if not parser.complete:
            raise MultiPartException("it ends before its last boundary")

    parser = _FormParser(
        request.headers,
        whole(),
        max_files=MOST_PICTURES,
        max_fields=MOST_FIELDS,
        max_part_size=limits.body_bytes,
    )
    try:
        async with in_time(limits.upload_s):
            form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"the body is no valid form: {error.message}") from None
    try:
        yield _from_form(form, limits.image_bytes)
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Starlette's parser, which takes a form without an end for a whole one and leaves the last file open."""

    complete = False

    def on_end(self) -> None:
        self.complete = True


def _from_form(form: FormData, most_bytes: int) -> EditUpload:
    fields: dict[str, Any] = {}
    files: list[tuple[str, BinaryIO]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append((name, _file(name, value, most_bytes)))
        elif name in (*_IMAGE, *_MASK):
            raise InvalidRequest(f"{name} is a text; accepted: a file", param=name)
        elif name in fields:
            raise InvalidRequest(f"{name[:64]} is there twice", param=name[:64])
        elif value:  # clients leave a field empty that they do not set
            fields[name] = _typed(name, value)
    return _upload(fields, files)


def _from_json(raw: bytes, most_bytes: int) -> EditUpload:
    try:
        fields = parsed_json(raw)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body has to be a JSON object")
    given = [("image", it) for it in _listed(fields.pop("images", []))]
    if (mask := fields.pop("mask", None)) is not None:
        given.append(("mask", mask))
    return _upload(fields, [(name, _from_data_url(name, it, most_bytes)) for name, it in given])


def _upload(fields: dict[str, Any], files: list[tuple[str, BinaryIO]]) -> EditUpload:
    """Sorts the files of a body by their names."""
    images, masks = ([file for name, file in files if name in names] for names in (_IMAGE, _MASK))
    for name, _ in files:
        if name not in (*_IMAGE, *_MASK):
            raise InvalidRequest(f"there is no file {name[:64]!r}; accepted: image and mask", param=name[:64])
    if len(images) != 1:
        raise InvalidRequest(f"image: {len(images)} pictures; accepted: {_ONE}", param="image")
    if len(masks) > 1:
        raise InvalidRequest(f"mask: {len(masks)} pictures; accepted: one", param="mask")
    return EditUpload(json.dumps(fields).encode(), images[0], masks[0] if masks else None)


def _file(name: str, file: UploadFile, most_bytes: int) -> BinaryIO:
    _check_size(name, file.size or 0, most_bytes)
    return file.file


def _check_size(name: str, size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise BodyTooLarge(f"{name[:64]} has {size_bytes} bytes; accepted: at most {most_bytes}", param=name[:64])


def _listed(images: Any) -> list[Any]:
    if not isinstance(images, list):
        raise InvalidRequest("images is no list; accepted: a list of one picture", param="images")
    return images


def _from_data_url(name: str, given: Any, most_bytes: int) -> BinaryIO:
    """The picture of ``{"image_url": "data:image/png;base64,…"}``."""
    url = given.get("image_url") if isinstance(given, dict) and len(given) == 1 else None
    kind, comma, text = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (kind.startswith("data:image/") and kind.endswith(";base64") and comma):
        raise InvalidRequest(
            f"{name} is no picture; accepted: image_url with a data URL in base64; nothing is fetched, and there are "
            "no file ids",
            param=name,
        )
    try:
        picture = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name} is not valid base64", param=name) from None
    _check_size(name, len(picture), most_bytes)
    return io.BytesIO(picture)


def _texts() -> frozenset[str]:
    """Names of the fields whose values are strings."""
    properties = EditBody.model_json_schema()["properties"]
    return frozenset(
        name for name, it in properties.items() if any(one.get("type") == "string" for one in it.get("anyOf", [it]))
    )


_TEXTS = _texts()


def _typed(name: str, text: str) -> Any:
    """The value of a form's field, as it would be in JSON; a text that is no JSON stays one, and is refused later."""
    if name in _TEXTS or name not in EditBody.model_fields:
        return text
    try:
        return json.loads({"True": "true", "False": "false"}.get(text, text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
