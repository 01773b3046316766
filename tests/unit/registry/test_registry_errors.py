"""What registries' error answers are taken for."""

from __future__ import annotations

from pathlib import Path

import pytest

from prewarm.registry.errors import Request, Role, error_code, login_cure, refusal, role_code

HIDDEN_429 = (
    b'{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":{"errors":[{"code":'
    b'"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}}]}'
)
"""What registry:2 with `proxy:` makes of the Hub's 429 (measured on 2.8.2)."""
UNSUPPORTED = b'{"errors":[{"code":"UNSUPPORTED","message":"s3cr3t"}]}'
NO_SPACE = b'{"errors":[{"code":"UNKNOWN","detail":"write /x: no space left on device"}]}'


@pytest.mark.parametrize(
    ("role", "request_", "status", "body", "code"),
    [
        ("upstream", "head", 404, b"", "not-found"),
        ("mirror", "head", 404, b"", "not-found"),
        ("upstream", "head", 403, b"", "not-found"),
        ("mirror", "upload", 401, b"", "mirror-unauthorized"),
        ("upstream", "manifest", 503, b"", "server-error"),
        ("mirror", "put", 500, b"", "mirror-server-error"),
        ("mirror", "upload", 500, NO_SPACE, "mirror-full"),
        ("mirror", "upload", 500, b'{"detail":{"Err":28}}', "mirror-full"),
        ("mirror", "upload", 500, b'{"detail":{"Err":288}}', "mirror-server-error"),
        ("mirror", "upload", 507, b"", "mirror-full"),
        ("upstream", "manifest", 500, NO_SPACE, "server-error"),
        ("mirror", "upload", 500, b'{"detail":{"Err":30}}', "mirror-read-only"),
        ("mirror", "upload", 405, UNSUPPORTED, "mirror-proxy"),
        ("mirror", "manifest", 500, HIDDEN_429, "mirror-upstream-quota"),
        ("mirror", "blob", 500, HIDDEN_429, "mirror-server-error"),
        ("upstream", "manifest", 500, HIDDEN_429, "server-error"),
        ("mirror", "delete", 405, UNSUPPORTED, "mirror-delete-disabled"),
        ("mirror", "upload", 405, b"Method not allowed", "mirror-read-only"),
        ("upstream", "tags", 405, UNSUPPORTED, "bad-answer"),
        ("upstream", "manifest", 429, b"pull rate limit", "upstream-quota"),
        ("upstream", "blob", 429, b"pull rate limit", "abuse-limit"),
        ("upstream", "head", 307, b"", "bad-answer"),
    ],
)
def test_refusal_of_an_answer_has_the_code_of_its_cause(
    role: Role, request_: Request, status: int, body: bytes, code: str
) -> None:
    found = refusal(role, request_, status, body, host="r.org", user=None)
    assert role_code(role, found.code) == code
    assert found.cure
    assert "s3cr3t" not in found.text + found.cure


@pytest.mark.parametrize(
    ("authfile", "cure"),
    [
        (None, "log in: skopeo login docker.io"),
        (Path("/etc/a.json"), "log in: skopeo login --authfile /etc/a.json docker.io"),
        (Path("/a b"), "log in: skopeo login --authfile '/a b' docker.io"),
    ],
)
def test_login_cure_names_the_authfile_where_there_is_one(authfile: Path | None, cure: str) -> None:
    assert login_cure("docker.io", authfile) == cure


def test_refusal_of_a_login_names_the_user() -> None:
    roles: tuple[Role, ...] = ("upstream", "mirror")
    for role in roles:
        found = refusal(role, "put", 403, b"", host="r.org", user="acme")
        assert "acme" in found.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (UNSUPPORTED, "UNSUPPORTED"),
        (b'{"errors":[{"code":"<script>"}]}', ""),
        (b'{"errors":[]}', ""),
        (b'{"errors":{}}', ""),
        (b"[1]", ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
        (b"", ""),
    ],
)
def test_error_code_of_a_body_is_the_first_or_nothing(body: bytes, code: str) -> None:
    assert error_code(body) == code
