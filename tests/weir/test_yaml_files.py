"""YAML files: values need no quotes, and errors name their line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from weir.config import FamilyConfig, KeysConfig, ServiceConfig, load_keys, load_service, read_yaml
from weir.errors import ConfigError
from weir.yaml_files import read_mapping, whole_number

PLAN = "plan: {light_replicas: 1, heavy_replicas: 1}\n"


def yaml_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "service.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def service(tmp_path: Path, more: str) -> ServiceConfig:
    return read_yaml(yaml_file(tmp_path, f"family: f.yaml\nslo_s: 5\n{PLAN}{more}"), ServiceConfig)


def literals(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """The accepted words of every key in a model and its nested models."""
    found: dict[str, tuple[str, ...]] = {}
    for name, field in model.model_fields.items():
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= {f"{name}.{key}": words for key, words in literals(part).items()}
            elif words := tuple(it for it in get_args(part) if isinstance(it, str)):
                found[name] = words
    return found


CHOICES = [
    (model, key, word)
    for model in (ServiceConfig, FamilyConfig, KeysConfig)
    for key, words in literals(model).items()
    for word in words
]


@pytest.mark.parametrize(("model", "key", "word"), CHOICES, ids=[f"{key}: {word}" for _, key, word in CHOICES])
def test_configuration_words_need_no_quotes(tmp_path: Path, model: type[BaseModel], key: str, word: str) -> None:
    assert read_mapping(yaml_file(tmp_path, f"value: {word}\n")) == {"value": word}


def test_a_cache_can_be_switched_off_without_quotes(tmp_path: Path) -> None:
    assert service(tmp_path, "cache: {mode: off}\n").cache.mode == "off"


@pytest.mark.parametrize("word", ["true", "True", "on", "On", "yes", "y", "1"])
def test_a_boolean_accepts_every_word_for_true(tmp_path: Path, word: str) -> None:
    class Switch(BaseModel):
        compile: bool

    assert read_yaml(yaml_file(tmp_path, f"compile: {word}\n"), Switch).compile is True


@pytest.mark.parametrize(
    ("given", "number"),
    [("8080", 8080), ("010", 10), ("1e3", 1000), ("0x10", 16), ("0o10", 8), ("1_000", 1000), ("10.0", 10)],
)
def test_whole_numbers_are_read_in_every_notation(tmp_path: Path, given: str, number: int) -> None:
    assert service(tmp_path, f"http: {{port: {given}}}\n").http.port == number


@pytest.mark.parametrize(("given", "number"), [("1e3", 1000.0), ("1.5e1", 15.0), (".5", 0.5), ("05", 5.0)])
def test_numbers_are_read_in_every_notation(tmp_path: Path, given: str, number: float) -> None:
    text = f"family: f.yaml\nslo_s: {given}\n{PLAN}"
    assert read_yaml(yaml_file(tmp_path, text), ServiceConfig).slo_s == number


@pytest.mark.parametrize("given", ["1:30", "true", "2026-11-29", "1,5", "5 s", "0x", "1e-3"])
def test_text_in_place_of_a_number_is_refused_and_quoted(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.port: Input should be a valid integer") as caught:
        service(tmp_path, f"http: {{port: '{given}'}}\n")
    assert f"(given: '{given}')" in caught.value.message


@pytest.mark.parametrize("name", ["010", "1e3", "1:30", "on", "no", "2026-11-29", "0x1F", "1_000", "1.10", "off"])
def test_a_name_keeps_every_character(tmp_path: Path, name: str) -> None:
    assert service(tmp_path, f"keys_file: {name}\n").keys_file == name


def test_a_digest_of_digits_stays_text(tmp_path: Path) -> None:
    digest = "1" * 62 + "e9"
    path = yaml_file(tmp_path, f"keys: [{{name: 007, sha256: {digest}, tenant: no}}]\n")
    [key] = load_keys(path).keys
    assert (key.name, key.sha256, key.tenant) == ("007", digest, "no")


@pytest.mark.parametrize("nothing", ["null", "~", "", "Null"])
def test_null_and_empty_values_leave_a_key_out(tmp_path: Path, nothing: str) -> None:
    assert service(tmp_path, f"profile: {nothing}\n").profile is None


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "b: 1\na: {x: 1}\n'a': {x: 2}\n", "a: &x {b: 1}\na: *x\n"])
def test_a_duplicate_key_is_an_error_with_both_lines(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"line \d: the key a is given twice, first in line \d; drop one"):
        read_mapping(yaml_file(tmp_path, text))


def test_a_duplicate_nested_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 6: the key port is given twice, first in line 5"):
        service(tmp_path, "http:\n  port: 1\n  port: 2\n")


def test_a_merged_key_may_be_overridden(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\n"
    assert read_mapping(yaml_file(tmp_path, text))["more"] == {"a": "1", "b": "3"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_in_common_encodings_are_read(tmp_path: Path, encoding: str, end: str) -> None:
    content = f"family: föhn.yaml{end}slo_s: 5{end}".encode(encoding)
    assert read_mapping(yaml_file(tmp_path, content)) == {"family": "föhn.yaml", "slo_s": "5"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\n\tb: 2\n", "line 2: not valid YAML: a tab stands where YAML takes spaces only"),
        ("a:\n\t- 1\n", "line 2: not valid YAML: a tab stands where YAML takes spaces only"),
        ("a: 1\nb: c: d\n", "line 2: not valid YAML: there is ': ' inside a value"),
        ("a: 1\nb\n", "line 2: not valid YAML: a key has no ': '"),
        ("a: 1\n  b: 2\n", "line 2: not valid YAML: .* indentation"),
        ("a: [1, 2\nb: 3\n", "line 2: not valid YAML: a list or mapping in brackets is not closed"),
        ("a: 'x\n", "line 1: not valid YAML: a quote is not closed"),
        ("a: @x\n", "line 1: not valid YAML: a value cannot begin with @; put it in quotes"),
        ("a: *x\n", "line 1: not valid YAML: a value that begins with \\* .* put it in quotes"),
        ("a: !env X\n", "line 1: not valid YAML: tags .* are not taken"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: not valid YAML: tags .* are not taken"),
        ("a: 1\n---\nb: 2\n", "line 2: not valid YAML: a second document begins here"),
        ("a: 1\nb: \x07\n", "line 2: not valid YAML: the character U\\+0007 is not allowed"),
        ("a:1\n", "no 'key: value' with a space after the colon"),
        ("- a\n- b\n", "expected keys and values, found a list"),
        ("", "the file is empty; expected keys and values"),
        ("# nothing yet\n", "the file is empty"),
        (b"a: 1\nb: caf\xe9\n", "line 2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_an_error_names_its_line_and_the_remedy(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_mapping(yaml_file(tmp_path, text))
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("text", ["weir-secret: 1\nweir-secret: 2\n", "a: @weir-secret\n", "a: *weir-secret\n"])
def test_an_error_in_a_keys_file_does_not_quote_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_keys(yaml_file(tmp_path, text))
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(("path", "message"), [("none.yaml", "there is no such file"), (".", "Is a directory")])
def test_a_path_that_is_not_a_file_is_named(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_service(tmp_path / path)


@pytest.mark.parametrize("text", ["1e3.5", "1.5", "1e", "e3", "12", "1.0e-1", "1e999", "१e3"])
def test_only_whole_numbers_are_converted(text: str) -> None:
    number: Any = whole_number(text)
    assert number is None


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a {b: *a}\n", "a: &a [*a]\n", "&a\nb: *a\n", BOMB.replace("[", "{<<: [").replace("]", "]}")]
)
def test_aliases_of_too_many_values_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"anchors .* stand for more than 100000 values, or a value contains itself"):
        read_mapping(yaml_file(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "name: x\npipeline: y\nsize: 64\n",
        "keys: []\n",
        "version: 3\nservices: {redis: {image: redis}}\n",
        "colour: red\n",
    ],
    ids=["family", "keys", "docker compose", "anything"],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is not a service file, which has no keys ") as caught:
        load_service(yaml_file(tmp_path, text))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("pool: {cpus_per_replica: inf}\n", "pool.cpus_per_replica"),
        ("pool: {gpus_per_replica: 1e9}\n", "pool.gpus_per_replica"),
        ("pool: {resources: {tpu: nan}}\n", "pool.resources.tpu"),
    ],
)
def test_a_number_that_no_machine_has_is_refused(tmp_path: Path, more: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        service(tmp_path, more)


def test_more_replicas_than_a_cluster_has_are_refused(tmp_path: Path) -> None:
    text = "family: f.yaml\nslo_s: 5\nplan: {light_replicas: 1, heavy_replicas: 100000000}\n"
    with pytest.raises(ConfigError, match="less than or equal to 4096"):
        read_yaml(yaml_file(tmp_path, text), ServiceConfig)


def test_a_long_value_is_shortened_in_an_error(tmp_path: Path) -> None:
    text = f"slo_s: {list(range(1000))}\nfamily: f.yaml\n{PLAN}"
    with pytest.raises(ConfigError, match="slo_s") as caught:
        read_yaml(yaml_file(tmp_path, text), ServiceConfig)
    assert len(caught.value.message) < 400
