"""The web page at ``/``: one self-contained file, with a content security policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import Response

_FILE = Path(__file__).with_name("page.html")


class Page:
    """The web page with its headers.

    The policy allows its own script and style by their digests, so that no script in a prompt, an error or a name can
    run.
    """

    def __init__(self) -> None:
        self._html = _FILE.read_text()
        self.policy = "; ".join(
            [
                "default-src 'none'",
                f"script-src {_digests('script', self._html)}",
                f"style-src {_digests('style', self._html)}",
                "img-src data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            ]
        )

    def response(self) -> Response:
        headers = {
            "Content-Security-Policy": self.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(self._html, media_type="text/html", headers=headers)


def _digests(tag: str, html: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(it.encode()).digest()).decode() for it in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
