"""Keeps secrets of configuration files out of messages and logs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Keys of configuration files whose values may hold a secret, in whatever form they are given.
MAY_HOLD_SECRETS = frozenset(("url", "secret_file"))
#: What is shown in place of a secret.
HIDDEN = "***"
#: Names of keys that can be shown; anything else may be a secret in the wrong place.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")


def without_credentials(text: str) -> str:
    """The text with user, password and options of every URL hidden."""
    text = re.sub(r"(://)[^\s'\"]*@", rf"\1{HIDDEN}@", text)
    return re.sub(r"(://[^\s'\"?]*)\?[^\s'\"]*", rf"\1?{HIDDEN}", text)


def key_name(key: object) -> str:
    """The name of a key as it is shown: what does not look like a name may be a secret, and is hidden."""
    return str(key) if isinstance(key, int) or _NAME.fullmatch(str(key)) else HIDDEN


def shown(value: Any, key: str = "") -> Any:
    """A configuration as it may be logged: values of :data:`MAY_HOLD_SECRETS` are hidden, and credentials in URLs.

    Args:
        key: the key of the value.
    """
    if isinstance(value, Mapping):
        return {name: shown(it, str(name)) for name, it in value.items()}
    if isinstance(value, list | tuple):
        return [shown(it, key) for it in value]
    if value is not None and key in MAY_HOLD_SECRETS:
        return HIDDEN
    return without_credentials(value) if isinstance(value, str) else value
