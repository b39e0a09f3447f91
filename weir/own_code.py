"""A user's own code, named as ``module:name`` where a configuration or an option offers a choice."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from weir.errors import ConfigError

#: Names the folder where ``weir`` was started, for the processes of a service: they have other working directories.
FOLDER = "WEIR_OWN_CODE"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: str) -> bool:
    """Whether a name has the form ``module:name``, which no registered name, folder or hub repository has."""
    return _NAME.fullmatch(name) is not None


def own(name: str, key: str, *, of: type | None = None) -> Any:
    """Imports the object that ``module:name`` stands for, from the path or else from the folder where ``weir`` was
    started. That folder comes last, so that no file in it takes the place of a library.

    Args:
        key: the configuration's key or the option, for the message.
        of: the class that it must be a subclass of.

    Raises:
        ConfigError: it cannot be imported, or is of another kind.
    """
    folder = os.environ.get(FOLDER) or os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # the module is the user's: whatever it raises is the answer
        raise ConfigError(
            f"{key}: {name}: {type(error).__name__}: {error}; write module:name of something that Python can import "
            f"from {folder} or PYTHONPATH, on every node"
        ) from None
    if of is not None and not (isinstance(found, type) and issubclass(found, of)):
        raise ConfigError(f"{key}: {name} is not a subclass of {of.__module__}.{of.__qualname__}")
    return found


def made(name: str, key: str, *arguments: Any, has: Sequence[str]) -> Any:
    """Calls what ``module:name`` stands for, and checks that the result has the named attributes.

    Raises:
        ConfigError: as :func:`own`; or the call fails, or an attribute is missing.
    """
    make = own(name, key)
    try:
        it = make(*arguments)
    except Exception as error:  # as above
        raise ConfigError(f"{key}: {name} raises {type(error).__name__}: {error}") from error
    if missing := [attribute for attribute in has if not hasattr(it, attribute)]:
        raise ConfigError(f"{key}: what {name} makes has no {', '.join(missing)}")
    return it
