"""The URL of Redis is checked when the client is created, and its password is never quoted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.store.backend import StoreFailed
from cache.store.redis_backend import RedisBackend
from weir.errors import ConfigError


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:1/0?db=3&client_name=weir&protocol=2",
        "rediss://127.0.0.1:1?ssl_cert_reqs=none",
        "unix://:password@/no/such/socket?db=1",
        "unix:///no/such/socket?username=weir&password=a%40b",
    ],
)
def test_options_of_redis_in_the_url_are_accepted(url: str) -> None:
    with pytest.raises(StoreFailed):
        RedisBackend(url).get("key")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1", "not a URL of Redis"),
        ("127.0.0.1:6379", "not a URL of Redis"),
        ("redis://127.0.0.1:high", "not a URL of Redis"),
        ("redis://127.0.0.1?foo=bar", "db, username"),
        ("redis://127.0.0.1?socket_timeout=60", "db, username"),
        ("redis://127.0.0.1?ssl_cert_reqs=none", "db, username"),
        ("redis://127.0.0.1?db=first", "'db'"),
    ],
)
def test_a_wrong_url_is_refused_with_the_accepted_form(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RedisBackend(url)


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "unix:///no/such/socket"])
def test_certificates_are_for_tls_only(url: str) -> None:
    with pytest.raises(ConfigError, match="rediss://"):
        RedisBackend(url, tls_ca="ca.pem")


@given(st.text("/?#@:[]&=%0123456789", max_size=8))
def test_a_password_is_never_quoted(nasty: str) -> None:
    with pytest.raises((ConfigError, StoreFailed)) as refused:
        RedisBackend(f"redis://:hush{nasty}hush@127.0.0.1:1/0").get("key")
    assert "hush" not in refused.value.message
