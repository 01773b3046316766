"""What a failed copy means, from skopeo's real words and what the gate met."""

from __future__ import annotations

import pytest

from prewarm.core.errors import RegistryError
from prewarm.sync.causes import Cause, cause_of, last_words, panic

WHERE = "http://127.0.0.1:5000/library/app"
DIGEST = "sha256:" + "a" * 64
UPLOAD = "/v2/library/app/blobs/uploads/ in 127.0.0.1:5000"
WRITING = f"writing blob: initiating layer upload to {UPLOAD}:"
REUSING = f"trying to reuse blob {DIGEST} at destination:"
PINGING = "pinging container registry 127.0.0.1:5000:"
PUTTING = f"writing manifest: uploading manifest {DIGEST} to 127.0.0.1:5000/library/app:"
SOURCE = f"initializing image from source docker://127.0.0.1:4000/n1@{DIGEST}:"
STATUS = "received unexpected HTTP status:"


def fatal(text: str, before: str = "") -> str:
    """Return a stderr as skopeo 1.9.3 writes it with --debug."""
    escaped = text.replace('"', '\\"')
    return (
        f'{before}time="2026-11-24T07:49:30Z" level=debug msg="HEAD http://x/unauthorized"\n'
        f'time="2026-11-24T07:49:30Z" level=fatal msg="{escaped}"\n'
    )


def said(text: str) -> Cause:
    return cause_of(fatal(text), WHERE)


@pytest.mark.parametrize(
    ("text", "code", "passing"),
    [
        (f"{WRITING} {STATUS} 500 Internal Server Error", "mirror-server-error", True),
        (f"writing blob: uploading layer chunked: {STATUS} 500 Internal Server Error",
         "mirror-server-error", True),
        (f"{PUTTING} {STATUS} 500 Internal Server Error", "mirror-server-error", True),
        (f"{REUSING} failed to read from destination repository library/app: 502 (Bad Gateway)",
         "mirror-server-error", True),
        (f"{REUSING} {PINGING} invalid status code from registry 503 (Service Unavailable)",
         "mirror-server-error", True),
        ("writing blob: uploading layer to http://m/v2/a/blobs/uploads/1: blob upload invalid",
         "mirror-server-error", True),
        (f"{WRITING} no space left on device", "mirror-full", True),
        ('writing blob: StatusCode: 405, "Method not allowed\\n"', "mirror-read-only", False),
        (f"{WRITING} unsupported: The operation is unsupported.", "mirror-read-only", False),
        (f"{WRITING} unauthorized: authentication required", "mirror-unauthorized", False),
        (f"checking whether a blob {DIGEST} exists in 127.0.0.1:5000/library/app: unauthorized: "
         "authentication required", "mirror-unauthorized", False),
        (f"{WRITING} denied: requested access to the resource is denied", "mirror-denied", False),
        (f"{WRITING} StatusCode: 413, ", "mirror-bad-answer", False),
        (f'{REUSING} pinging container registry m.org: Get "https://m.org/v2/": x509: certificate '
         "signed by unknown authority", "mirror-tls", False),
        (f'{REUSING} {PINGING} Get "https://127.0.0.1:5000/v2/": http: server gave HTTP response '
         "to HTTPS client", "mirror-plain-http", False),
        (f'{PINGING} Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: '
         "connection refused", "mirror-unreachable", True),
        (f'{REUSING} pinging container registry m.org: Get "https://m.org/v2/": dial tcp: lookup '
         "m.org: no such host", "mirror-unreachable", True),
        ('pinging container registry m.org: Get "https://m.org/v2/": dial tcp 192.0.2.1:443: '
         "i/o timeout", "mirror-unreachable", True),
        ('pinging container registry m.org: Get "https://m.org/v2/": net/http: TLS handshake '
         "timeout", "mirror-timeout", True),
        ('writing blob: Patch "http://127.0.0.1:5000/v2/library/app/blobs/uploads/8a?_state=x": '
         "read tcp 127.0.0.1:57038->127.0.0.1:5000: read: connection reset by peer",
         "mirror-reset", True),
        ("writing blob: uploading layer to http://m/v2/library/app/blobs/uploads/8a?… digest "
         "invalid", "mirror-bad-upload", True),
        (f"{PUTTING} manifest invalid", "copy", True),
    ],
)  # fmt: skip
def test_cause_of_words_about_a_mirror_is_suspected_there(
    text: str, code: str, passing: bool
) -> None:
    found = said(text)
    assert (found.error.code, found.side, found.passing) == (code, "mirror", passing)
    assert found.error.text.startswith(f"{WHERE}: ")
    assert found.error.cure
    assert "\n" not in str(found.error)


@pytest.mark.parametrize(
    ("text", "code", "passing"),
    [
        (f'{SOURCE} unsupported docker v2s2 media type: "application/vnd.docker.image.rootfs.'
         'diff.tar.zstd"', "unsupported-manifest", False),
        (f'{SOURCE} unsupported docker v2s2 media type: "x: {PINGING} connection refused"',
         "unsupported-manifest", False),
        (f"writing blob: Digest did not match, expected {DIGEST}, got {DIGEST}", "bad-digest",
         True),
        (f"reading config blob {DIGEST}: Download config.json digest {DIGEST} does not match "
         f"expected {DIGEST}", "bad-digest", True),
        (f"Manifest does not match provided manifest digest {DIGEST}", "bad-digest", True),
        ("writing blob: happened during read: unexpected EOF", "reset", True),
        (f"reading blob {DIGEST}: denied: requested access to the resource is denied", "copy",
         True),
        (f"{SOURCE} certificate x509 no space left on device status: 500", "copy", True),
        ("writing blob: happened during read: write /var/tmp/x: no space left on device", "copy",
         True),
        ("context deadline exceeded", "timeout", False),
    ],
)  # fmt: skip
def test_cause_of_words_about_an_image_is_never_the_mirrors(
    text: str, code: str, passing: bool
) -> None:
    """Whoever pushes an image must not be able to make its mirror look broken."""
    found = said(text)
    assert (found.error.code, found.side, found.passing) == (code, "source", passing)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('writing blob: Patch "http://127.0.0.1:5000/v2/evil/unauthorized/x509-403/blobs/uploads/'
         '8a": EOF', "mirror-reset"),
        (f"writing manifest: uploading manifest {DIGEST} to 127.0.0.1:5000/denied/error-405: "
         "manifest invalid", "copy"),
    ],
)  # fmt: skip
def test_cause_of_an_image_with_a_telling_name_is_not_read_from_the_name(
    text: str, code: str
) -> None:
    assert said(text).error.code == code


@pytest.mark.parametrize(
    ("text", "request_", "uploading", "reached"),
    [
        (f"{WRITING} {STATUS} 500 Internal Server Error", "500 to an upload", True, True),
        (f"{PUTTING} {STATUS} 502 Bad Gateway", "502 to the manifest", False, True),
        (f"{REUSING} failed to read from destination repository library/app: 502 (Bad Gateway)",
         "502 to a HEAD of a blob", False, True),
        (f"{REUSING} {PINGING} invalid status code from registry 503 (Service Unavailable)",
         "503 to GET /v2/", False, False),
    ],
)  # fmt: skip
def test_cause_of_a_server_error_names_status_and_request(
    text: str, request_: str, uploading: bool, reached: bool
) -> None:
    found = said(text)
    assert found.error.text == f"{WHERE}: the mirror answered {request_}"
    assert (found.uploading, found.reached) == (uploading, reached)


def test_cause_of_a_required_login_has_the_callers_cure() -> None:
    told = fatal(f"{WRITING} unauthorized: no")
    assert cause_of(told, WHERE, login="log in there").error.cure == "log in there"
    denied = fatal(f"{WRITING} denied: no")
    assert cause_of(denied, WHERE, login="log in there").error.cure == (
        "give the account the right to push"
    )


def test_cause_of_what_the_gate_met_is_that() -> None:
    met = RegistryError("mirror-reset", "http://other: it broke off", "look there")
    found = cause_of(fatal(f"{WRITING} EOF"), WHERE, source=met)
    assert (found.error.code, found.error.text, found.side) == ("reset", met.text, "source")
    assert found.passing
    lost = RegistryError("not-found", "docker.io/app: blob not found", "push it again")
    assert not cause_of(fatal(f"{WRITING} EOF"), WHERE, source=lost).passing


def test_cause_of_a_refusal_that_the_mirror_is_known_to_have_sent_is_that() -> None:
    own = RegistryError("mirror-full", f"{WHERE}: has no space left", "free some")
    found = cause_of(fatal(f"{WRITING} {STATUS} 500 Internal Server Error"), WHERE, mirror=own)
    assert (found.error, found.side, found.uploading) == (own, "mirror", True)
    # Where skopeo failed to read the image all the same, it is the image's.
    told = fatal(f'{SOURCE} unsupported docker v2s2 media type: "x"')
    found = cause_of(told, WHERE, mirror=own)
    assert (found.error.code, found.side) == ("unsupported-manifest", "source")


@pytest.mark.parametrize(
    ("code", "passing"),
    [("mirror-server-error", True), ("mirror-reset", True), ("mirror-bad-upload", True)]
    + [(f"mirror-{code}", False) for code in ("unauthorized", "denied", "read-only", "tls")],
)
def test_cause_of_a_refusal_that_is_known_says_whether_it_may_pass(
    code: str, passing: bool
) -> None:
    own = RegistryError(code, f"{WHERE}: it failed", "look")
    assert cause_of(fatal(f"{WRITING} x"), WHERE, mirror=own).passing is passing


@pytest.mark.parametrize("stderr", ["", "\n\n", 'time="x" level=debug msg="unauthorized"\n'])
def test_cause_of_no_words_says_so(stderr: str) -> None:
    found = cause_of(stderr, WHERE).error
    assert (found.code, found.text) == ("copy", f"{WHERE}: skopeo failed: without a word")


CRASH = """panic: invalid page type: 0: 4

goroutine 35 [running]:
github.com/containers/image/copy.Image(...)
\tgithub.com/containers/image/copy/copy.go:979 +0x393
"""


def test_cause_of_a_crash_names_the_line_of_the_panic() -> None:
    found = cause_of('time="x" level=debug msg="x"\n' + CRASH, WHERE)
    assert found.error.text == f"{WHERE}: skopeo crashed: panic: invalid page type: 0: 4"
    assert panic(CRASH) == "panic: invalid page type: 0: 4"
    assert panic("fatal error: fault\n") == "fatal error: fault"
    assert panic(fatal("writing blob: panic: EOF")) is None


def test_last_words_are_the_last_fatal_message_without_signatures() -> None:
    stderr = fatal("first") + fatal('Get "https://cdn/blob?verify=s3cr3t&x=1": EOF, again')
    assert last_words(stderr) == 'Get "https://cdn/blob?…": EOF, again'


def test_last_words_of_a_usage_error_are_its_last_line() -> None:
    assert last_words("Usage: skopeo copy\nunknown flag: --preserve-digests\n") == (
        "unknown flag: --preserve-digests"
    )


def test_last_words_are_short() -> None:
    assert len(last_words(fatal("x" * 100_000))) == 500
