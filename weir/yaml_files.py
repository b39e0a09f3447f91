"""Reads the YAML that people write by hand, without the surprises of YAML 1.1.

Every plain scalar stays the text that stands in the file, and only ``null``, ``~`` and nothing are None: what a value
means is decided by the field that takes it. ``mode: off`` is the word off, ``compile: on`` is true, ``name: 010`` keeps
its zero, and a digest of digits is no number. A key that stands twice is an error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from weir.errors import ConfigError
from weir.secrecy import key_name

_STRING, _NULL, _MERGE = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "null", "merge"))
#: Largest number of values in a file; a few nested aliases could stand for billions.
MOST_VALUES = 100_000
#: Largest number of brackets within one another; the time of YAML's scanner grows with the square of it.
MOST_BRACKETS = 50
#: Byte order marks; a file without one is UTF-8.
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
#: What YAML's parser says → what is wrong and the remedy.
_REMEDIES = (
    (r"found character '\\t'", "a tab stands where YAML takes spaces only; indent with spaces"),
    (r"found character '(.)' that cannot", r"a value cannot begin with \1; put it in quotes"),
    ("mapping values are not allowed", "there is ': ' inside a value, or the indentation is wrong; put text in quotes"),
    ("could not find expected ':'", "a key has no ': ' (colon and space) after it"),
    ("expected <block end>", "the indentation does not match the lines above"),
    ("expected a single document", "a second document begins here; a file holds one"),
    (r"expected '?,'? or '?([\]}])'?", r"a list or mapping in brackets is not closed; a \1 or a comma is missing"),
    ("while scanning a quoted scalar", "a quote is not closed"),
    ("brackets too deep", f"it is nested too deeply: more than {MOST_BRACKETS} brackets within one another"),
    ("found the character U", "a value has the character U+0000; delete it"),
    ("found undefined alias", "a value that begins with * names something above; put it in quotes"),
    ("could not determine a constructor", "tags (words that begin with !) are not taken; put the value in quotes"),
)


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars are text or None, and whose keys stand once."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level >= MOST_BRACKETS:
            raise yaml.scanner.ScannerError(problem="brackets too deep", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        if "\0" in node.value:  # no name or path has one, and the system's calls fail at it
            raise yaml.constructor.ConstructorError(problem="found the character U+0000", problem_mark=node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                raise DuplicateKey(key.value, lines[key.value], key.start_mark.line + 1)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_MERGE, re.compile("^<<$"), ["<"])


class DuplicateKey(Exception):
    """A mapping has a key twice; the lines count from 1."""

    def __init__(self, key: str, first_line: int, line: int):
        super().__init__(key, first_line, line)
        self.key, self.first_line, self.line = key, first_line, line


def read_mapping(path: Path, *, quoted: bool = True) -> dict[str, Any]:
    """The keys and values of one YAML file; every scalar in it is a string or None.

    Args:
        quoted: complaints may show what stands in the file.

    Raises:
        ConfigError: names the file and the line, what is wrong there, and the remedy.
    """
    text = _decoded(path)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and not _is_small(node):
            raise ConfigError(
                f"{path}: its anchors (&) and aliases (*) stand for more than {MOST_VALUES} values, or a value "
                "contains itself; write the values out"
            )
        fields = None if node is None else loader.construct_document(node)
    except DuplicateKey as error:
        name = f"the key {key_name(error.key)}" if quoted else "a key"
        raise ConfigError(
            f"{path}: line {error.line}: {name} is given twice, first in line {error.first_line}; drop one"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}: line {line}: not valid YAML: the character U+{error.character:04X} is not allowed; delete it"
        ) from None
    except yaml.MarkedYAMLError as error:
        begun = (error.context or "").startswith("while scanning a")  # a key or a quoted text that does not end
        mark = error.context_mark if begun and error.context_mark else error.problem_mark
        place = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{path}: {place}not valid YAML: {_problem(error, quoted)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    if fields is None:
        raise ConfigError(f"{path}: the file is empty; expected keys and values")
    if not isinstance(fields, dict):
        found = "a list" if isinstance(fields, list) else "text; there is no 'key: value' with a space after the colon"
        raise ConfigError(f"{path}: expected keys and values, found {found}")
    return fields


def _is_small(root: yaml.Node) -> bool:
    """Whether a document has at most :data:`MOST_VALUES` values. What aliases repeat counts every time, so a value that
    contains itself has too many."""
    left, count = [root], 0
    while left and count <= MOST_VALUES:
        node = left.pop()
        count += 1
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            left += itertools.chain.from_iterable(node.value)
    return count <= MOST_VALUES


def whole_number(text: str) -> int | None:
    """The number that is written as ``1e3``, ``0x1F`` or ``0o17``; None where it is no whole one."""
    if re.fullmatch(r"[-+]?0x[0-9a-fA-F]+|[-+]?0o[0-7]+", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE]\+?\d{1,2}", text, re.ASCII) and float(text).is_integer():
        return int(float(text))
    return None


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _problem(error: yaml.MarkedYAMLError, quoted: bool) -> str:
    said = " ".join(filter(None, (error.context, error.problem)))
    for pattern, remedy in _REMEDIES:
        if found := re.search(pattern, said):
            if quoted or "\\1" not in remedy:
                return found.expand(remedy)
            break
    return said if quoted else "put values in quotes, and indent with spaces"
