"""The declaration of the keys, and what is made from it: JSON Schema and sample."""

from __future__ import annotations

import json
import re
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prewarm.config import reader, schema
from prewarm.core.errors import ConfigError
from prewarm.core.settings import Allowance, Gitlab, Limits, Mirror, Notify, Pin, Runners, Upstream
from prewarm.core.text import Refused, parse_duration

ROOT = Path(__file__).parents[3]
TOP = "version: 1\nmirrors: [http://127.0.0.1:5000]\n"


def uncommented(sample: str) -> str:
    """Return the sample with every commented key in force."""
    return re.sub(r"(?m)^#(?! \S)", "", sample)


class Yaml12(yaml.SafeLoader):
    """YAML as editors read it: `on` is a text, only true and false are truths."""


Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


def as_editors_read(text: str) -> Any:
    return yaml.load(text, Loader=Yaml12)


def validator() -> Any:
    return jsonschema.Draft202012Validator(schema.json_schema())


def schema_accepts(text: str) -> bool:
    return bool(validator().is_valid(as_editors_read(text)))


def reader_accepts(text: str, folder: Path) -> bool:
    path = folder / "images.yml"
    path.write_text(text, encoding="utf-8")
    try:
        reader.load(path, home=folder)
    except ConfigError:
        return False
    return True


def test_images_schema_json_in_the_package_equals_the_declaration() -> None:
    shipped = files("prewarm").joinpath("images.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == schema.json_schema()
    assert shipped == schema.json_schema_text()


def test_json_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())


GOOD = {
    "sample": schema.example(),
    "sample with every key": uncommented(schema.example()),
    "the repository's own": (ROOT / "images.yml").read_text(encoding="utf-8"),
    "smallest": TOP,
    "nothing below the keys": TOP
    + "images:\ninclude:\nlimits:\ngitlab:\nregistries: {quay.io: }\n",
    "tags as numbers": TOP + "images: [{image: python, tags: [3.12, 3]}]",
    "tags by range": TOP + "images: [{image: python, tags: {semver: '>=3.12', newest: 5}}]",
    "all platforms": TOP + "platforms: all",
    "no budget": TOP + "registries: {docker.io: {budget: none}}",
    "zero budget": TOP + "registries: {docker.io: {budget: {pulls: 0}}}",
    "schedule as text": TOP + "schedule: every 6h",
    "shared state": TOP + "state: postgresql://prewarm@db/prewarm",
}
BAD = {
    "empty mapping": "{}",
    "no version": "mirrors: [http://a]",
    "newer version": "version: 2\nmirrors: [http://a]",
    "no mirror": "version: 1\nmirrors: []",
    "mirrors as nothing": "version: 1\nmirrors:",
    "mirrors as a text": "version: 1\nmirrors: http://a",
    "mirror without scheme": "version: 1\nmirrors: ['127.0.0.1:5000']",
    "mirror with a path": "version: 1\nmirrors: [http://a/b]",
    "mirror with a login": "version: 1\nmirrors: ['http://u:p@a']",
    "mirror with a query": "version: 1\nmirrors: ['http://a?b']",
    "mirror without url": "version: 1\nmirrors: [{mode: push}]",
    "unknown mode": "version: 1\nmirrors: [{url: http://a, mode: pull}]",
    "unknown key": TOP + "mirror: []",
    "unknown key below": TOP + "limits: {paralel: 4}",
    "budget without pulls": TOP + "registries: {docker.io: {budget: {window: 6h}}}",
    "budget as another word": TOP + "registries: {docker.io: {budget: unlimited}}",
    "negative pulls": TOP + "registries: {docker.io: {budget: {pulls: -1}}}",
    "zero window": TOP + "registries: {docker.io: {budget: {pulls: 1, window: 0h}}}",
    "registry with a path": TOP + "registries: {quay.io/prometheus: {}}",
    "duration in words": TOP + "recheck: 6 hours",
    "duration without unit": TOP + "recheck: 6",
    "size without unit": TOP + "limits: {image_size: 10}",
    "size in words": TOP + "limits: {image_size: 10 gigs}",
    "one platform as text": TOP + "platforms: linux/amd64",
    "platform without architecture": TOP + "platforms: [linux]",
    "no platforms": TOP + "platforms: []",
    "gitlab without url": TOP + "gitlab: {groups: [a]}",
    "group as URL": TOP + "gitlab: {url: https://g, groups: ['https://g/a']}",
    "truth as text": TOP + "gitlab: {url: https://g, variables: maybe}",
    "match and semver": TOP + "images: [{image: a, tags: {match: '*', semver: '*'}}]",
    "neither match nor semver": TOP + "images: [{image: a, tags: {newest: 1}}]",
    "no tags": TOP + "images: [{image: a, tags: []}]",
    "tag with a blank": TOP + "images: [{image: a, tags: ['a b']}]",
    "pin without image": TOP + "images: [{tags: [a]}]",
    "images as mapping": TOP + "images: {golang: bullseye}",
    "time of no day": TOP + "schedule: ['25:00']",
    "notify nobody": TOP + "notify: {on: [failure]}",
    "notify of what is not known": TOP + "notify: {command: [a], on: [success]}",
    "empty path": TOP + "authfile: ''",
    "parallel without a number": TOP + "limits: {parallel: many}",
    "parallel of zero": TOP + "limits: {parallel: 0}",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_json_schema_of_a_good_file_agrees_with_the_reader(text: str, tmp_path: Path) -> None:
    assert [error.message for error in validator().iter_errors(as_editors_read(text))] == []
    assert reader_accepts(text, tmp_path)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_json_schema_of_a_bad_file_agrees_with_the_reader(text: str, tmp_path: Path) -> None:
    assert not schema_accepts(text)
    assert not reader_accepts(text, tmp_path)


def test_example_shows_every_key() -> None:
    sample = uncommented(schema.example())
    names = {path.rpartition(".")[2].removesuffix("[]") for path, _ in schema.every_key()}
    missing = {name for name in names if not re.search(rf"(?<![\w-]){name}:", sample)}
    assert missing == set()


def test_example_has_no_long_line_and_ends_with_one_newline() -> None:
    assert max(map(len, schema.example().splitlines())) <= 100
    assert re.search(r"[^\n]\n\Z", schema.example())


def test_every_key_every_key_has_a_meaning_and_once_a_path() -> None:
    paths = [path for path, _ in schema.every_key()]
    assert len(paths) == len(set(paths))
    assert {"version", "mirrors[].url", "gitlab.runners.ids", "registries.<name>.budget.pulls"} < {
        *paths
    }
    assert all(key.meaning for _, key in schema.every_key())


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (schema.MIRROR, Mirror("", "")),
        (schema.BUDGET, Allowance(0)),
        (schema.GITLAB, Gitlab("")),
        (schema.RUNNERS, Runners()),
        (schema.LIMITS, Limits()),
        (schema.NOTIFY, Notify()),
    ],
    ids=["mirror", "budget", "gitlab", "runners", "limits", "notify"],
)
def test_every_key_declared_names_and_defaults_are_those_of_the_settings(
    declared: schema.Keys, value: Any
) -> None:
    assert is_dataclass(value)
    assert {key.name for key in declared.keys} == {field.name for field in fields(value)}
    for key in declared.keys:
        if isinstance(key.kind, schema.Text) and key.default == key.example and key.default:
            assert key.kind.parse(key.default) == getattr(value, key.name), key.name


def test_every_key_of_registries_and_pins_are_fields_of_the_settings() -> None:
    assert {key.name for key in schema.REGISTRY.keys} < {field.name for field in fields(Upstream)}
    assert {"tags", "platforms"} < {field.name for field in fields(Pin)}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("6h", 21600), ("14d", 1209600), ("2w", 1209600)],
)
def test_parse_duration_of_each_unit_returns_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "6", "h", "6 h", "6H", "-6h", "1.5h", "6h30m", "٦h", "6hours"]
)
def test_parse_duration_of_another_text_raises(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_parse_duration_of_more_than_ten_years_is_refused_with_a_cure() -> None:
    with pytest.raises(Refused, match="longer than ten years"):
        parse_duration("3651d")
    assert parse_duration("3650d") == 3650 * 86400


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("1 TB", 10**12),
        ("4kB", 4000),
        ("4KB", 4000),
        ("4KiB", 4096),
        ("7B", 7),
    ],
)
def test_parse_size_of_binary_and_decimal_units_returns_bytes(text: str, size: int) -> None:
    assert schema.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "10", "GiB", "10G", "10gib", "-1GB", "1e3GB", "4kiB", "1.GB"])
def test_parse_size_of_another_text_raises(text: str) -> None:
    with pytest.raises(ValueError):
        schema.parse_size(text)


@given(st.text(max_size=200))
def test_shown_of_any_text_is_one_short_printable_line(text: str) -> None:
    assert schema.shown(text).isprintable()
    assert len(schema.shown(text)) <= 60 * 10 + 2


@pytest.mark.parametrize(
    "text",
    ["https://me:hunter2@host/x", "me:hunter2@host", "https://hunter2@host", "a:hunter2@b/c"],
)
def test_shown_of_a_login_does_not_show_it(text: str) -> None:
    assert "hunter2" not in schema.shown(text)


def test_shown_of_a_digest_shows_it() -> None:
    assert "sha256" in schema.shown("golang:1@sha256:abc")
