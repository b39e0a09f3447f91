"""No secret of a configuration file is quoted, wherever and in whatever form it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from deploy.service_process import effective
from weir.config import CacheConfig, load_keys, load_service
from weir.errors import ConfigError
from weir.secrecy import without_credentials

SECRET = "hunter2-correct-horse-battery-staple"
FAMILY = Path("deploy/families/weir-tiny.yaml").resolve()
#: Forms in which Redis takes a password, and forms in which it is mistyped.
URLS = (
    f"redis://:{SECRET}@host:6379/0",
    f"redis://user:{SECRET}@host:6379/0",
    f"redis://{SECRET}@host:6379/0",
    f"redis://host:6379/0?password={SECRET}",
    f"unix:///run/redis.sock?username=a&password={SECRET}",
    f"redis://:a/{SECRET}@host:6379/0",
    f"redis://:a@{SECRET}@host:6379/0",
    f"redis://host:{SECRET}/0",
    f"host:6379 password {SECRET}",
    SECRET,
)


def service_file(folder: Path, more: str) -> Path:
    """A valid service file with further lines."""
    path = folder / "service.yaml"
    path.write_text(f"family: {FAMILY}\nslo_s: 5\nplan: {{light_replicas: 1, heavy_replicas: 1}}\n{more}\n")
    return path


@pytest.mark.parametrize("url", URLS)
def test_the_logged_configuration_has_no_secret_in_whatever_form_it_is_given(tmp_path: Path, url: str) -> None:
    service, family = load_service(service_file(tmp_path, f"cache: {{url: '{url}'}}"))
    assert service.cache.url == url
    text = effective(service, family)
    assert SECRET not in text
    assert "url: '***'" in text
    assert SECRET not in repr(service)


MISTAKES = (
    *(f"cache: {{{key}: '{url}'}}" for key in ("ulr", "redis_url", "password") for url in URLS),
    *(f"cache_url: '{url}'" for url in URLS),
    *(f"cache: {{url: ['{url}']}}" for url in URLS),
    *(f"cache: {{url: {{address: '{url}'}}}}" for url in URLS),
    *(f"cache: '{url}'" for url in URLS),
    f"cache: {{url:redis://:{SECRET}@host:6379/0}}",
    f"cache: {{secret: {SECRET}}}",
    f"cache: {{secret_file: [{SECRET}]}}",
    f"cache: {{{SECRET}-and-more: 1}}",
    f"cache:\n  url:redis://:{SECRET}@host:6379/0",
    f"cache:\n  '{SECRET}-and-more': 1\n  '{SECRET}-and-more': 2",
    f"keys: {SECRET}",
    f"http: {{allowed_origins: ['http://user:{SECRET}@host']}}",
    f"http: {{allowed_origins: 'http://user:{SECRET}@host'}}",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_complaint_about_a_file_quotes_a_secret_that_is_in_it(tmp_path: Path, mistake: str) -> None:
    path = service_file(tmp_path, mistake)
    with pytest.raises(ConfigError) as caught:
        load_service(path)
    assert SECRET not in caught.value.message
    for command in ("up", "check", "render"):
        refused = CliRunner().invoke(app, [command, str(path)])
        assert refused.exit_code != 0
        assert SECRET not in refused.output


@pytest.mark.parametrize("entry", [f"{SECRET}-and-more: 1", f"key: {SECRET}", f"name: a, sha256: {SECRET}"])
def test_no_complaint_about_a_keys_file_has_a_key_that_is_in_it(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: [{{{entry}}}]")
    with pytest.raises(ConfigError) as caught:
        load_keys(path)
    assert SECRET not in caught.value.message


def test_a_secret_in_place_of_its_file_is_not_quoted() -> None:
    from cache.factory import secrets

    with pytest.raises(ConfigError, match=r"cache\.secret_file: the file that it names cannot be read") as caught:
        secrets(CacheConfig(secret_file=SECRET))
    assert SECRET not in caught.value.message


def test_an_unknown_key_is_named_and_its_value_is_not_quoted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.ulr: Extra inputs are not permitted$"):
        load_service(service_file(tmp_path, "cache: {ulr: a}"))


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("redis://:a/b@c@host:6379/0 is wrong", "redis://***@host:6379/0 is wrong"),
        ("redis://host/0?password=a&x=b'", "redis://host/0?***'"),
        ("a@b, what? http://host/path", "a@b, what? http://host/path"),
    ],
)
def test_urls_are_shown_without_credentials(text: str, hidden: str) -> None:
    assert without_credentials(text) == hidden
