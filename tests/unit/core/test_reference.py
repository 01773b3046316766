"""References: docker's rules as a table, and the properties that the rest relies on."""

from __future__ import annotations

import pickle
import string
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prewarm.core.reference import (
    InvalidReference,
    Reference,
    parse,
    parse_registry,
    parse_repository,
    valid_tag,
)

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA384 = "sha384:" + "0" * 96
SHA512 = "sha512:" + "f" * 128

READ = [
    # Short names are Docker Hub's, one without a slash is official.
    ("golang", "docker.io/library/golang:latest"),
    ("golang:bullseye", "docker.io/library/golang:bullseye"),
    ("library/golang", "docker.io/library/golang:latest"),
    ("bitnami/redis", "docker.io/bitnami/redis:latest"),
    ("bitnami/redis:7.2", "docker.io/bitnami/redis:7.2"),
    ("a/b/c/d", "docker.io/a/b/c/d:latest"),
    ("docker.io/golang", "docker.io/library/golang:latest"),
    ("docker.io/golang:1", "docker.io/library/golang:1"),
    ("docker.io/library/golang", "docker.io/library/golang:latest"),
    ("docker.io/library/a/b", "docker.io/library/a/b:latest"),
    ("library/a/b", "docker.io/library/a/b:latest"),
    ("docker.io/bitnami/redis", "docker.io/bitnami/redis:latest"),
    ("docker.io/docker.io/x", "docker.io/docker.io/x:latest"),
    # The other names of Docker Hub.
    ("index.docker.io/golang", "docker.io/library/golang:latest"),
    ("index.docker.io/bitnami/redis", "docker.io/bitnami/redis:latest"),
    ("registry-1.docker.io/golang", "docker.io/library/golang:latest"),
    ("registry-1.docker.io/library/golang:1", "docker.io/library/golang:1"),
    ("Index.Docker.IO/golang", "docker.io/library/golang:latest"),
    ("DOCKER.IO/golang", "docker.io/library/golang:latest"),
    ("docker.io:443/golang", "docker.io:443/golang:latest"),
    # A first part with a dot, a colon, or localhost is a host; `library/` is Docker Hub's alone.
    ("quay.io/prometheus/node-exporter", "quay.io/prometheus/node-exporter:latest"),
    ("quay.io/x", "quay.io/x:latest"),
    ("Quay.IO/x", "quay.io/x:latest"),
    ("localhost/x", "localhost/x:latest"),
    ("LocalHost/x", "localhost/x:latest"),
    ("localhost:5000/x:1", "localhost:5000/x:1"),
    ("host:5000/x", "host:5000/x:latest"),
    ("host:5000/team/app:1.2", "host:5000/team/app:1.2"),
    ("HOST:5000/x", "host:5000/x:latest"),
    ("h:0/x", "h:0/x:latest"),
    ("127.0.0.1/x", "127.0.0.1/x:latest"),
    ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
    ("[::1]/x", "[::1]/x:latest"),
    ("[::1]:5000/x:2", "[::1]:5000/x:2"),
    ("[FC00::ABCD]:5000/x", "[fc00::abcd]:5000/x:latest"),
    ("xn--n3h.com/myimage", "xn--n3h.com/myimage:latest"),
    ("xn--7o8h.com/myimage:xn--7o8h.com", "xn--7o8h.com/myimage:xn--7o8h.com"),
    ("a--b.example/x", "a--b.example/x:latest"),
    ("a.b.c.d.e/x", "a.b.c.d.e/x:latest"),
    ("1.2/x", "1.2/x:latest"),
    # Without a slash there is no host.
    ("localhost", "docker.io/library/localhost:latest"),
    ("localhost:5000", "docker.io/library/localhost:5000"),
    ("example.com", "docker.io/library/example.com:latest"),
    ("host:80", "docker.io/library/host:80"),
    ("192.168.0.1", "docker.io/library/192.168.0.1:latest"),
    # Separators within a part of the path.
    ("foo__bar/a_b", "docker.io/foo__bar/a_b:latest"),
    ("foo---bar", "docker.io/library/foo---bar:latest"),
    ("0/1/2", "docker.io/0/1/2:latest"),
    ("quay.io/foo.bar/x__y", "quay.io/foo.bar/x__y:latest"),
    ("quay.io/localhost/x", "quay.io/localhost/x:latest"),
    # Tags and digests.
    ("x:Latest", "docker.io/library/x:Latest"),
    ("x:_1.2-b", "docker.io/library/x:_1.2-b"),
    ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
    ("x@" + SHA256, "docker.io/library/x@" + SHA256),
    ("x@" + SHA384, "docker.io/library/x@" + SHA384),
    ("x@" + SHA512, "docker.io/library/x@" + SHA512),
    ("x:1@" + SHA256, "docker.io/library/x:1@" + SHA256),
    ("host:5000/x:1@" + SHA256, "host:5000/x:1@" + SHA256),
    # A digest alone reads as repository and tag, as docker has it.
    (SHA256, "docker.io/library/" + SHA256),
    # Lengths: of the path alone, with library/.
    ("a/" + "b" * 253, "docker.io/a/" + "b" * 253 + ":latest"),
    ("c" * 247, "docker.io/library/" + "c" * 247 + ":latest"),
    ("quay.io/" + "d" * 255, "quay.io/" + "d" * 255 + ":latest"),
    ("a" * 63, "docker.io/library/" + "a" * 63 + ":latest"),
    ("a" * 65, "docker.io/library/" + "a" * 65 + ":latest"),
    ("a" * 64 + ":1", "docker.io/library/" + "a" * 64 + ":1"),
]

REFUSED = [
    ("", "is empty"),
    (" golang", "white space"),
    ("golang ", "white space"),
    ("golang\n", "white space"),
    ("go lang", "white space"),
    ("go\x00lang", "white space"),
    ("go\x1b[2Jlang", "white space"),
    ("https://github.com/docker/docker", "is a URL"),
    ("docker://golang", "is a URL"),
    ("$CI_REGISTRY_IMAGE/app", "variable"),
    ("golang:${VERSION}", "variable"),
    ("gol\u00e4ng", "characters"),
    ("\u212a.io/x", "characters"),
    ("golang:\u0661", "characters"),
    ("\ud800", "characters"),
    # Upper case.
    ("Golang", "upper-case"),
    ("docker/Docker", "upper-case"),
    ("docker.io/docker/Docker", "upper-case"),
    ("quay.io/Prometheus/x", "upper-case"),
    ("Foo/bar", "in lower case is a name on Docker Hub"),
    ("FOO/BAR", "in lower case is a name on Docker Hub"),
    # Paths.
    (":tag", "no repository"),
    ("@" + SHA256, "no repository"),
    ("docker.io/", "no repository"),
    ("docker.io/library/", "no repository"),
    ("quay.io/", "no repository"),
    ("quay.io/:1", "no repository"),
    ("/golang", "no repository"),
    ("golang/", "no repository"),
    ("docker///docker", "no repository"),
    ("docker.io//docker", "no repository"),
    ("docker.io/docker///docker", "no repository"),
    ("-docker", "no repository"),
    ("docker-", "no repository"),
    ("-docker/docker", "no repository"),
    ("docker/-docker", "no repository"),
    ("foo..bar", "no repository"),
    ("foo___bar", "no repository"),
    ("foo._bar", "no repository"),
    ("_foo", "no repository"),
    (".foo", "no repository"),
    ("..", "no repository"),
    ("quay.io/../x", "no repository"),
    ("foo+bar", "no repository"),
    ("foo\\bar", "no repository"),
    ("foo*", "no repository"),
    ("c" * 248, "longer than 255"),
    ("quay.io/" + "d" * 256, "longer than 255"),
    # Hosts.
    ("-docker.io/docker/docker", "host that is none"),
    ("docker.io-/x", "host that is none"),
    ("foo_bar.com/x", "host that is none"),
    (".example.com/x", "host that is none"),
    ("example.com./x", "host that is none"),
    ("a..b/x", "host that is none"),
    ("../x", "host that is none"),
    ("host:/x", "host that is none"),
    ("host:port/x", "host that is none"),
    ("host:80:80/x", "host that is none"),
    (":5000/x", "host that is none"),
    ("fc00::1:5000/debian", "host that is none"),
    ("[fe80::1%eth0]:5000/debian", "host that is none"),
    ("[2001:db8:3:4::192.0.2.33]:5000/debian", "host that is none"),
    ("[]:5000/x", "host that is none"),
    ("[::1]x:5000/x", "host that is none"),
    (".".join(["a" * 63] * 4) + "/x", "longer than 253"),
    ("[::1]", "no repository"),
    # Tags.
    ("golang:", "no tag"),
    ("golang:.1", "no tag"),
    ("golang:-1", "no tag"),
    ("golang:a:b", "no tag"),
    ("golang:a+b", "no tag"),
    ("golang:" + "t" * 129, "no tag"),
    ("quay.io/x:1/2", "no tag"),
    # Digests.
    ("golang@", "digest"),
    ("golang@latest", "digest"),
    ("golang@sha256:" + "0" * 63, "digest"),
    ("golang@sha256:" + "0" * 65, "digest"),
    ("golang@sha256:" + "A" * 64, "digest"),
    ("golang@sha384:" + "0" * 64, "digest"),
    ("golang@md5:" + "0" * 32, "digest"),
    ("golang@SHA256:" + "0" * 64, "digest"),
    ("golang@" + SHA256 + ":1", "digest"),
    ("golang@" + SHA256 + "@" + SHA256, "digest"),
    ("0123456789abcdef" * 4, "an image's id"),
]


@pytest.mark.parametrize(("text", "canonical"), READ)
def test_parse_valid_text_gives_the_canonical_reference(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_parse_invalid_text_names_the_problem(text: str, problem: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse(text)
    assert problem in caught.value.problem
    assert caught.value.cure
    assert str(caught.value).isprintable()


def test_parse_full_reference_fills_every_field() -> None:
    assert parse("Host:5000/team/app:1.2@" + SHA256) == Reference(
        "host:5000", "team/app", "1.2", SHA256
    )
    assert parse("golang") == Reference("docker.io", "library/golang", "latest")
    assert parse("golang@" + SHA256).tag is None


def test_parse_upper_case_repository_offers_the_lower_case() -> None:
    with pytest.raises(InvalidReference, match="write 'team/app'"):
        parse("quay.io/Team/App:Tag")


@pytest.mark.parametrize(
    "text",
    [
        "https://bot:S3cret@registry.example.org/app:1",
        "https://bot:S3/cret@registry.example.org",
        "bot:S3cret@registry.example.org/app:1",
        "bot:S3/cret@registry.example.org/app:1",
        "bot:S3cret@registry.example.org:5000/App",
        "bot:S3@cret@registry.example.org/app",
        "S3cret@registry.example.org/app",
        "bot:S3+cret@registry",
        "bot:S3cret@localhost/app",
        "b+t:S3cret@localhost/app",
    ],
)
def test_parse_text_with_a_password_keeps_it_out_of_the_error(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse(text)
    shown = f"{caught.value} {caught.value!r} {caught.value.args} {caught.value.text}"
    assert "cret" not in shown
    assert "S3" not in shown


def test_parse_bad_digest_shows_the_whole_text() -> None:
    with pytest.raises(InvalidReference, match=r"'golang:1@sha256:12'"):
        parse("golang:1@sha256:12")


def test_parse_long_text_is_cut_in_the_error() -> None:
    with pytest.raises(InvalidReference) as caught:
        parse("A" * 1_000_000)
    assert len(str(caught.value)) < 600


def test_parse_hostile_long_text_is_refused_at_once() -> None:
    for text in ("a-" * 200_000, "a." * 200_000 + "/x", "a/" * 200_000, "a" + "-" * 400_000):
        with pytest.raises(InvalidReference):
            parse(text)


def test_invalid_reference_pickled_is_the_same() -> None:
    with pytest.raises(InvalidReference) as caught:
        parse("a:b@c/Foo")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("text", "familiar"),
    [
        ("docker.io/library/golang:bullseye", "golang:bullseye"),
        ("docker.io/bitnami/redis:7", "bitnami/redis:7"),
        ("library/a/b:1", "library/a/b:1"),
        ("quay.io/x:1", "quay.io/x:1"),
        ("localhost/library/x:1", "localhost/library/x:1"),
        ("golang:1@" + SHA256, "golang:1@" + SHA256),
        ("docker.io/library/localhost:1", "localhost:1"),
        ("docker.io/localhost/x:1", "docker.io/localhost/x:1"),
        ("docker.io/foo.bar/x:1", "docker.io/foo.bar/x:1"),
    ],
)
def test_familiar_reference_is_what_docker_prints(text: str, familiar: str) -> None:
    assert parse(text).familiar == familiar


def test_familiar_repository_that_looks_like_an_id_stays_in_full() -> None:
    name = "docker.io/library/" + "a" * 64
    assert parse_repository(name).familiar == name


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("golang", "library/golang"),
        ("bitnami/redis", "bitnami/redis"),
        ("quay.io/prometheus/node-exporter", "quay.io/prometheus/node-exporter"),
        ("Registry.Example.org:5000/team/app", "registry.example.org_5000/team/app"),
        ("localhost/x", "localhost/x"),
        ("localhost:5000/x", "localhost_5000/x"),
        ("127.0.0.1:5000/x", "127.0.0.1_5000/x"),
        ("docker.io:443/x", "docker.io_443/x"),
        ("foo_bar/x", "foo_bar/x"),
        ("foo_5000a/x", "foo_5000a/x"),
        ("foo5000/x", "foo5000/x"),
        ("foo-5000/x", "foo-5000/x"),
        ("team/foo_5000", "team/foo_5000"),
        ("team/foo.bar", "team/foo.bar"),
        ("example.com", "library/example.com"),
    ],
)
def test_mirror_repository_is_where_the_contract_says(text: str, path: str) -> None:
    assert parse(text).mirror_repository == path


@pytest.mark.parametrize(
    "text",
    [
        "docker.io/foo.bar/x",
        "docker.io/docker.io/x",
        "docker.io/localhost/x",
        "foo_5000/x",
        "localhost_5000/x",
        "foo__5000/x",
        "[::1]/x",
        "[::1]:5000/x",
        "registry.example.org/" + "a" * 235,
        "prewarm/indexes",
    ],
)
def test_mirror_repository_without_a_path_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        _ = parse(text).mirror_repository
    assert caught.value.cure


def test_selector_prefers_the_digest_then_the_tag_then_latest() -> None:
    assert parse("x:1@" + SHA256).selector == SHA256
    assert parse("x:1").selector == "1"
    assert parse_repository("x").selector == "latest"


def test_with_tag_replaces_tag_and_digest() -> None:
    assert parse("x:1@" + SHA256).with_tag("2") == parse("x:2")


def test_without_selector_is_the_repository() -> None:
    assert parse("x:1@" + SHA256).without_selector() == parse_repository("x")
    assert str(parse("x:1").without_selector()) == "docker.io/library/x"


def test_with_tag_invalid_text_is_refused() -> None:
    with pytest.raises(InvalidReference):
        parse("x").with_tag("../../y")


def test_order_absent_selector_comes_first() -> None:
    wanted = [
        parse_repository("a"),
        parse("a@" + SHA256),
        parse("a:1"),
        parse("a:1@" + SHA256),
        parse("a:2"),
        parse("b:1"),
        parse("quay.io/a:1"),
    ]
    assert sorted({*wanted}) == wanted
    assert all(one <= other and not one >= other for one, other in pairwise(wanted))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("python", "docker.io/library/python"),
        ("Quay.io/a/b", "quay.io/a/b"),
        ("host:5000/a", "host:5000/a"),
    ],
)
def test_parse_repository_name_alone_has_no_tag(text: str, name: str) -> None:
    found = parse_repository(text)
    assert (found.name, found.tag, found.digest, str(found)) == (name, None, None, name)


@pytest.mark.parametrize("text", ["python:3.12", "python@" + SHA256, "quay.io/a:latest"])
def test_parse_repository_with_a_selector_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="tag or a digest"):
        parse_repository(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("docker.io", "docker.io"),
        ("Index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("Quay.IO", "quay.io"),
        ("localhost", "localhost"),
        ("mirror:5000", "mirror:5000"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_parse_registry_host_is_canonical(text: str, host: str) -> None:
    assert parse_registry(text) == host


@pytest.mark.parametrize("text", ["", "quay", "https://quay.io", "quay.io/x", "a b.c", "\u212a.io"])
def test_parse_registry_text_that_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_registry(text)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("latest", True),
        ("_", True),
        ("3.12", True),
        ("A" * 128, True),
        ("A" * 129, False),
        ("", False),
        (".1", False),
        ("-1", False),
        ("a/b", False),
        ("a:b", False),
        ("a\n", False),
        ("\u0661", False),
    ],
)
def test_valid_tag_text_is_told(text: str, valid: bool) -> None:
    assert valid_tag(text) is valid


# Short alphabets, so that names that could land on one path do turn up together.
label = st.sampled_from(["a", "b", "0", "a-b", "localhost", "docker", "io", "library"])
port = st.sampled_from(["", ":0", ":5000"])
hosts = st.one_of(
    st.builds(
        lambda parts, at: ".".join(parts) + at, st.lists(label, min_size=2, max_size=3), port
    ),
    st.builds(lambda name, at: name + at, label, st.sampled_from([":0", ":5000"])),
    st.sampled_from(["localhost", "docker.io", "index.docker.io", "[::1]", "[::1]:5000"]),
)
word = st.sampled_from(["a", "b", "0", "5000", "localhost", "docker", "io", "library"])
component = st.builds(
    lambda start, rest: start + "".join(mark + part for mark, part in rest),
    word,
    st.lists(st.tuples(st.sampled_from([".", "_", "__", "-", "--"]), word), max_size=2),
)
paths = st.lists(component, min_size=1, max_size=3).map("/".join)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
digests = st.one_of(
    st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__),
    st.text("0123456789abcdef", min_size=128, max_size=128).map("sha512:".__add__),
)
texts = st.builds(
    lambda host, path, tag, digest: (
        (f"{host}/" if host else "")
        + path
        + (f":{tag}" if tag else "")
        + (f"@{digest}" if digest else "")
    ),
    st.one_of(st.none(), hosts, hosts.map(str.upper)),
    paths,
    st.one_of(st.none(), tags),
    st.one_of(st.none(), digests),
)


def parsed(text: str) -> Reference:
    """Return the reference; a path whose first part looks like a host may be none."""
    try:
        return parse(text)
    except InvalidReference:
        assume(False)
        raise


@given(texts)
def test_parse_of_str_is_the_same_reference(text: str) -> None:
    reference = parsed(text)
    assert parse(str(reference)) == reference
    assert parse(reference.familiar) == reference
    assert parse_repository(reference.name) == reference.without_selector()
    assert parse_registry(reference.registry) == reference.registry


@given(texts, texts)
def test_mirror_repository_of_two_names_is_never_one_path(one: str, other: str) -> None:
    first, second = parsed(one), parsed(other)
    try:
        same = first.mirror_repository == second.mirror_repository
    except InvalidReference:
        assume(False)
        raise
    assert same == (first.name == second.name)


@given(texts)
def test_mirror_repository_is_a_name_that_registries_take(text: str) -> None:
    reference = parsed(text)
    try:
        path = reference.mirror_repository
    except InvalidReference:
        return
    assert parse_repository("mirror.example:5000/" + path).repository == path


@given(
    st.one_of(
        st.text(),
        st.text(string.printable),
        st.text("aA0._-:/@[]$%\n"),
        texts.flatmap(
            lambda text: st.builds(
                lambda at, odd: text[:at] + odd + text[at:],
                st.integers(0, len(text)),
                st.text(max_size=2),
            )
        ),
    )
)
def test_parse_any_text_raises_nothing_but_invalid_reference(text: str) -> None:
    try:
        read = str(parse(text))
    except InvalidReference as error:
        read = str(error)
    assert read.isprintable()
