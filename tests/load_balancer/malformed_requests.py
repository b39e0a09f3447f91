"""A hundred requests with one mistake each: name → (body, status, the field that the error has to name)."""

from __future__ import annotations

import json
from typing import Any

GOOD: dict[str, Any] = {"prompt": "a red circle"}


def _with(**fields: Any) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def _raw(text: str) -> bytes:
    return b'{"prompt": "a red circle", ' + text.encode() + b"}"


WRONG_FIELDS: dict[str, tuple[Any, ...]] = {
    "prompt": ("", " ", "\n\t", "\x1f\0", "\u00a0\ufeff", "x" * 2001, None, 1, 1.5, True, [], ["a"], {}, {"text": "a"}),
    "negative_prompt": ("x" * 2001, 1, True, [], {}),
    "model": (1, True, [], {}),
    "n": (0, -1, 5, 10**9, 10**30, 1.5, "1", "two", True, False, [], {}),
    "size": (
        "",
        "63x64",
        "64",
        "64x",
        "x64",
        "64X64",
        "64x32",
        "100000x10000",
        "-64x-64",
        "64x64 ",
        64,
        [64, 64],
        True,
    ),
    "quality": ("", "best", 1, True, []),
    "style": ("", "baroque", 1),
    "background": ("transparent", "", 1),
    "moderation": ("high", 1),
    "response_format": ("", "png", "URL", 1, True),
    "output_format": ("", "gif", "PNG", 1),
    "output_compression": (-1, 101, 50, "50", 1.5, True),
    "user": (1, True, [], "x" * 513),
    "safety_identifier": (1, "x" * 513),
    "stream": ("true", 1, "false", []),
    "partial_images": (1, 3, 4, -1, 1.5, True, "0"),
    "seed": (-2, 7.5, 2**64, 10**40, 1.5, "1", True, [1]),
    "num_inference_steps": (0, -1, 101, 10**12, 2.5, "20", True),
    "guidance_scale": (-0.1, 30.5, 1e300, "7", True, []),
    "loras": ("night", 1, {}, [1], [{}], [{"name": 1}], [{"name": "night"}], [{"name": "night", "weight": 1}]),
}

BODIES: dict[str, tuple[bytes, int, str | None]] = {
    **{
        f"{field}={json.dumps(value)[:24]}": (_with(**{field: value}), 400, field)
        for field, values in WRONG_FIELDS.items()
        for value in values
    },
    "a model that does not exist": (_with(model="dall-e-4"), 404, "model"),
    "a variant that does not exist": (_with(model="toy/medium"), 404, "model"),
    "an empty model": (_with(model=""), 404, "model"),
    "an unknown field": (_with(steps=10), 400, "steps"),
    "an unknown field with a long name": (_with(**{"y" * 5000: 1}), 400, "y" * 64),
    "an unknown field that looks private": (_with(__class__="x"), 400, "__class__"),
    "partial images of no stream": (_with(stream=False, partial_images=1), 400, "partial_images"),
    "too many partial images": (_with(stream=True, partial_images=4), 400, "partial_images"),
    "a stream of URLs": (_with(stream=True, response_format="url"), 400, "stream"),
    "NaN as guidance": (_raw('"guidance_scale": NaN'), 400, "guidance_scale"),
    "Infinity as guidance": (_raw('"guidance_scale": Infinity'), 400, "guidance_scale"),
    "-Infinity as guidance": (_raw('"guidance_scale": -Infinity'), 400, "guidance_scale"),
    "NaN as seed": (_raw('"seed": NaN'), 400, "seed"),
    "NaN as n": (_raw('"n": NaN'), 400, "n"),
    "an overflowing number": (_raw('"guidance_scale": 1e999'), 400, "guidance_scale"),
    "no prompt": (b"{}", 400, "prompt"),
    "nothing": (b"", 400, None),
    "a blank": (b" ", 400, None),
    "null": (b"null", 400, None),
    "a list": (b"[]", 400, None),
    "a list of requests": (b'[{"prompt": "a"}]', 400, None),
    "a string": (b'"a red circle"', 400, None),
    "a number": (b"1", 400, None),
    "half a body": (b'{"prompt": "a red', 400, None),
    "a trailing comma": (b'{"prompt": "a",}', 400, None),
    "single quotes": (b"{'prompt': 'a'}", 400, None),
    "a comment": (b'{"prompt": "a"} // b', 400, None),
    "two objects": (b'{"prompt": "a"}{"prompt": "b"}', 400, None),
    "a form": (b"prompt=a", 400, None),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', 400, None),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), 400, None),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}', 400, None),
    "zero bytes": (b"\0" * 64, 400, None),
    "deep nesting": (b'{"prompt": ' + b"[" * 20_000, 400, None),
    "64 KiB and one byte": (b'{"prompt": "' + b"x" * (64 * 1024) + b'"}', 413, None),
    "a megabyte": (b'{"prompt": "a", "user": "' + b"x" * 2**20 + b'"}', 413, None),
}
assert len(BODIES) >= 100
