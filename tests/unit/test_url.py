"""URLs: which can be read, and that no part of a password is shown of those that cannot."""

from __future__ import annotations

import asyncio
from itertools import product
from urllib.parse import quote

import pytest

from headrace import ConfigurationError, Headrace
from headrace.backends.redis.address import parse
from headrace.settings import Settings, load, redacted

SECRETS = [f"s3cr{special}77et" for special in "/?#@[]:%,;&= \\'\"~^|<>"]
FORMS = [
    "redis://:{}@host:6379/0",
    "redis://me:{}@host",
    "rediss://me:{}@host/0?ssl_ca_certs=x",
    "redis://host/0?password={}",
    "unix://me:{}@/path/to/socket",
    "redis+cluster://me:{}@one:1,two:2",
    "redis+sentinel://me:{}@one:1,two:2/name/0",
    "me:{}@host:6379",
    "//:{}@host:6379/0",
    "redis:/:{}@host:6379/0",
    "redis://me:{}",
    "redis+cluster://me:{}",
    "{}",
]


def said(url: str) -> str:
    """Everything that people are shown of it."""
    texts = [redacted(url)]
    for read in (lambda: load(url), lambda: parse(Settings(url=url))):
        try:
            read()
        except ConfigurationError as e:
            texts.append(str(e))
    return "\n".join(texts)


CASES = [
    (form, secret)
    for form, secret in product(FORMS, SECRETS)
    if "@" in form or "@" not in secret  # else what follows it is where a host is
]


@pytest.mark.parametrize(("form", "secret"), CASES)
def test_no_part_of_a_password_is_shown(form: str, secret: str) -> None:
    shown = said(form.format(secret))
    assert "s3cr" not in shown
    assert "77et" not in shown


@pytest.mark.parametrize("secret", SECRETS)
def test_a_password_that_is_percent_encoded_is_taken_as_it_is(secret: str) -> None:
    for form in FORMS[:7]:
        url = form.format(quote(secret, safe=""))
        assert parse(load(url)).arguments["password"] == secret, form


def test_a_url_that_cannot_be_read_is_refused_before_anything_is_connected() -> None:
    for url in ("redis://:p4ss/word@host", "redis://:pa]55[@host", "host:6379", "redis://:pa55?word@host"):
        with pytest.raises(ConfigurationError, match=r"special characters are percent-encoded: / is %2F"):
            Headrace(url)


def test_the_client_library_s_own_words_are_not_repeated() -> None:
    for url in ("redis://host:99999", "redis://host?socket_timeout=s3cret", "redis+cluster://one:1,two:99999"):
        app = Headrace(url)
        with pytest.raises(ConfigurationError, match=r"it cannot be read; ports are 1 to 65535") as caught:
            asyncio.run(app.connect())
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", "embedded"),
        ("redis://", "redis://"),
        ("redis://host", "redis://host"),
        ("redis://:6379/2", "redis://:6379/2"),
        ("redis://me:secret@host:6379/0?a=b", "redis://***@host:6379/0?***"),
        ("redis://:p@ss@host", "redis://***@host"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss+cluster://me:secret@one:1,[::1]:2", "rediss+cluster://***@one:1,[::1]:2"),
        ("redis+sentinel://me:secret@one:1,two:2/name/0", "redis+sentinel://***@one:1,two:2/name/0"),
        ("unix:///a@b/s", "unix:///a@b/s"),
        ("unix://me:secret@/a/s?db=1", "unix://***@/a/s?***"),
    ],
)
def test_what_is_shown_of_a_url_that_can_be_read(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert load(url, environment={}).url == url
