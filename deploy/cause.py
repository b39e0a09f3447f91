"""The cause of a failure in one line, out of the tracebacks that Ray passes on as text."""

from __future__ import annotations

import re

#: Start of a traceback's line that names the exception.
_EXCEPTION = re.compile(r"^(\w+\.)*[A-Z]\w*(: |$)")
#: The same for Weir's own, whose messages need no name.
_OWN = re.compile(r"^weir\.errors\.\w+: ")


def reason(error: BaseException) -> str:
    """The error in one line, with its type if it has no message."""
    return cause(str(error)) or type(error).__name__


def cause(text: str) -> str:
    """The cause in one line of text that Ray passes on: it may contain whole tracebacks, of which the last line that
    names an exception has the message."""
    traceback = "Traceback" in text
    lines = [line.rstrip('"}. ') for line in text.replace("\\n", "\n").splitlines() if line.strip(' "}.')]
    named = [line for line in lines if _EXCEPTION.match(line)]
    found = (named if traceback and named else lines)[-1:]
    return _OWN.sub("", found[0].strip()) if found else ""
