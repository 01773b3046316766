"""Traces: what the runner's own lines name, in every form, and nothing that a script prints."""

# ruff: noqa: E501 - the lines of logs stand as they are printed

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prewarm.core.reference import parse
from prewarm.discovery.job_log import RUNNER_IMAGES, TOOL_IMAGES, Trace, read

CORPUS = Path(os.environ.get("PREWARM_CORPUS", Path(__file__).parents[4] / "shared/corpus"))
ID = "sha256:" + "1f" * 32
D1, D2 = "sha256:" + "a1" * 32, "sha256:" + "b2" * 32
HEADER = "Running with gitlab-runner 17.5.0 (abcdef01)\n  on worker-7 t1_AbCdEf, system ID: s_1\n"
SECTION = "section_start:1700000000:prepare_executor\r\x1b[0K"
SECTION_END = "section_end:1700000009:prepare_executor\r\x1b[0K"
DOCKER = 'Preparing the "docker" executor\n'
KUBERNETES = 'Preparing the "kubernetes" executor\nUsing Kubernetes namespace: ci\n'
SCRIPT = "Running on runner-1 via worker-7...\n$ make\n"


def named(trace: Trace) -> str:
    """Return the images as `kind=text`, those that failed with an exclamation mark."""
    return " ".join(
        f"{image.kind}={image.text}{'!' if image.failed else ''}" for image in trace.images
    )


def stamped(text: str, stream: str = "00O") -> str:
    return "".join(
        f"2026-03-04T05:06:07.{n:06d}Z {stream} {line}\n"
        for n, line in enumerate(text.splitlines())
    )


# --- one row for each line that a runner prints: its head of trace, what is named ---

LINES = {
    "docker main": (DOCKER + "Using Docker executor with image rust:1.80 ...\n", "image=rust:1.80"),
    "docker main of 0.x": (
        "gitlab-ci-multi-runner 0.7.2 (998cf5d)\nUsing Docker executor with image perl:5 ...\n",
        "image=perl:5",
    ),
    "docker-ssh": ("Using Docker-SSH executor with image perl:5 ...\n", "image=perl:5"),
    "docker windows": (
        'Preparing the "docker-windows" executor\n'
        "Using Docker executor with image mcr.microsoft.com/windows/servercore:ltsc2022 ...\n",
        "image=mcr.microsoft.com/windows/servercore:ltsc2022",
    ),
    "autoscaler": (
        'Preparing the "docker-autoscaler" executor\nDialing instance i-1...\n'
        "Instance i-1 connected\nUsing Docker executor with image rust ...\n",
        "image=rust",
    ),
    "registry with port and digest": (
        f"Using Docker executor with image hub.example.com:5050/t/app@{D1} ...\n",
        f"image=hub.example.com:5050/t/app@{D1}",
    ),
    "pulling": ("Pulling docker image rust:1 ...\n", "image=rust:1"),
    "pulling for a platform": (
        "Using Docker executor with image rust:1 ...\n"
        "Pulling docker image rust:1 for platform linux/arm64/v8 ...\n",
        "image=rust:1",
    ),
    "service before 17": (
        "Using Docker executor with image rust:1 ...\nStarting service redis:7 ...\n"
        "Pulling docker image redis:7 ...\n",
        "image=rust:1 service=redis:7",
    ),
    "service without a space": (
        "Using Docker executor with image rust:1 ...\nStarting service redis:latest...\n"
        "Pulling docker image redis:latest ...\nStarting service team/db:9...\n"
        f"Using docker image {ID} for team/db:9 ...\n",
        "image=rust:1 service=redis:latest service=team/db:9",
    ),
    "service whose port is lost": (
        "Using Docker executor with image rust:1 ...\nStarting service hub.example.com/db:9...\n"
        "Pulling docker image hub.example.com:5050/db:9 ...\n",
        "image=rust:1 service=hub.example.com:5050/db:9",
    ),
    "service by digest": (
        f"Using Docker executor with image rust:1 ...\nStarting service redis@{D1}...\n"
        f"Pulling docker image redis@{D1} ...\n",
        f"image=rust:1 service=redis@{D1}",
    ),
    "service that no pull names": (
        "Using Docker executor with image rust:1 ...\nStarting service hub.example.com/db:9...\n"
        "Pulling docker image rust:1 ...\n",
        "image=rust:1",
    ),
    "service of the job's own image": (
        "Using Docker executor with image docker:27-dind ...\nStarting service docker:27-dind...\n"
        "Pulling docker image docker:27-dind ...\n",
        "image=docker:27-dind service=docker:27-dind",
    ),
    "effective policy in docker": (
        DOCKER + "Using Docker executor with image rust ...\nStarting service redis:7...\n"
        "Using effective pull policy of [always if-not-present] for container redis:7\n"
        "Using effective pull policy of [always] for container rust\n"
        f"Using effective pull policy of [always] for container {ID}\n",
        "image=rust service=redis:7",
    ),
    "effective policy in kubernetes": (
        KUBERNETES + "Using Kubernetes executor with image rust ...\n"
        "Using effective pull policy of [Always] for container build\n"
        "Using effective pull policy of [Always] for container svc-0\n",
        "image=rust",
    ),
    "local image": (
        "Using Docker executor with image own ...\n"
        'Using locally found image version due to "if-not-present" pull policy\n'
        f"Using docker image {ID} for own ...\n",
        "image=own",
    ),
    "used, printed again for the script": (
        f"Using Docker executor with image rust:1 ...\nUsing docker image {ID} for rust:1 ...\n"
        * 2,
        "image=rust:1",
    ),
    "9.5": (
        "Using Docker executor with image ruby:2.3 ...\nStarting service postgres:9 ...\n"
        f"Using docker image postgres:9 ID={ID} for postgres service...\n"
        f"Using docker image {ID} for predefined container...\n"
        f"Using docker image ruby:2.3 ID={ID} for build container...\n",
        "image=ruby:2.3 service=postgres:9",
    ),
    "helper": (
        "Using Docker executor with image rust:1 ...\n"
        "Using helper image:  registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v17.5.0\n"
        "Pulling docker image registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v17.5.0 ...\n",
        "image=rust:1 helper=registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v17.5.0",
    ),
    "helper overridden": (
        "Using helper image:  team/helper:2  (overridden, default would be  "
        "gitlab/gitlab-runner-helper:x86_64-1 )\n",
        "helper=team/helper:2",
    ),
    "helper only pulled": (
        "Using Docker executor with image rust:1 ...\n"
        "Pulling docker image gitlab/gitlab-runner-helper:x86_64-1a2b ...\n",
        "image=rust:1 helper=gitlab/gitlab-runner-helper:x86_64-1a2b",
    ),
    "helper of another name": (
        "Using Docker executor with image rust:1 ...\nPulling docker image team/h:2 ...\n",
        "image=rust:1 helper=team/h:2",
    ),
    "kubernetes": (KUBERNETES + "Using Kubernetes executor with image go ...\n", "image=go"),
    "kubernetes before 13.12, not expanded": (
        KUBERNETES + "Using Kubernetes executor with image $IMAGE:1 ...\n",
        "",
    ),
    "masked": ("Using Docker executor with image hub.example.com/[MASKED]/a:1 ...\n", ""),
    "no image's name": ("Using Docker executor with image Team/APP ...\n", ""),
    "scratch": ("Pulling docker image scratch ...\n", ""),
    "shell": (
        'Preparing the "shell" executor\nUsing Shell (bash) executor...\nRunning on host...\n',
        "",
    ),
    "resumed, since 19.1": (
        DOCKER + f"Resuming Docker executor...\nUsing docker image {ID} for rust:1 ...\n",
        "image=rust:1",
    ),
    "with credentials": (
        DOCKER + "Using Docker executor with image rust:1 ...\n"
        "Authenticating with credentials from $DOCKER_AUTH_CONFIG\n"
        "Pulling docker image rust:1 ...\n",
        "image=rust:1",
    ),
    "ssh": ('Preparing the "ssh" executor\nUsing SSH executor...\n', ""),
    "custom": ('Preparing the "custom" executor\nUsing Custom executor...\n', ""),
    "virtualbox": (
        'Preparing the "virtualbox" executor\nUsing VirtualBox version 7.0 executor...\n'
        "Creating new VM...\n",
        "",
    ),
    "instance": ('Preparing the "instance" executor\nPreparing instance...\n', ""),
    "pod events": (
        KUBERNETES
        + "Using Kubernetes executor with image go ...\nPreparing environment\nSubscribing to Kubernetes Pod events...\n"
        "Type     Reason      Message\nNormal   Scheduled   Successfully assigned ci/r to node\n"
        'Normal   Pulling   Pulling image "go"\n'
        'Normal   Pulled   Container image "registry.gitlab.com/x/gitlab-runner-helper:1" already present on machine\n'
        'Normal   Pulling   Pulling image "redis:7"\n',
        "image=go helper=registry.gitlab.com/x/gitlab-runner-helper:1 service=redis:7",
    ),
    "durations of a copied page": (
        'Preparing the "docker" executor 00:05\nUsing Docker executor with image rust:1 ... 00:03\n',
        "image=rust:1",
    ),
    "escapes lost, indented": (
        "   [0KRunning with gitlab-runner 13.1.0 (1)\n [0;m[0KUsing Docker executor with image a:1 ...\n"
        " [0;33mWARNING: x[0;m\n",
        "image=a:1",
    ),
    "line breaks lost": (
        "Running with gitlab-ci-multi-runner 1.10.4 (b32125f)Using Docker executor with image a:1 ..."
        "Starting service b:2 ...Pulling docker image b:2 ...Running on r via m...",
        "image=a:1 service=b:2",
    ),
}


@pytest.mark.parametrize(("head", "images"), LINES.values(), ids=LINES.keys())
@pytest.mark.parametrize("form", ["plain", "section", "colour", "stamped", "crlf", "bytes"])
def test_read_line_of_the_runner_names_the_image(head: str, images: str, form: str) -> None:
    if form == "section":
        head = HEADER + SECTION + head.replace("Preparing environment\n", SECTION_END) + SECTION_END
    elif form == "colour":
        head = "".join(f"\x1b[0K{line}\x1b[0;m\n" for line in head.splitlines())
    elif form == "stamped":
        head = stamped(HEADER + SECTION + "\n" + head)
    elif form == "crlf":
        head = head.replace("\n", "\r\n")
    assert named(read(head.encode() if form == "bytes" else head)) == images


def test_read_trace_that_came_by_mail_joins_its_soft_breaks() -> None:
    head = "=1B[0KRunning with gitlab-runner 13.1.0 (1)\n=1B[0KUsing Docker executor with image ru=\nst:1 ...\n"
    assert named(read(head)) == "image=rust:1"
    assert named(read("Using Docker executor with image ru=\nst:1 ...\n")) == ""


@pytest.mark.parametrize("name", sorted(path.stem for path in CORPUS.glob("traces/*.txt")) or [""])
def test_read_trace_of_the_corpus_names_its_images_exactly(name: str) -> None:
    if not CORPUS.parent.is_dir():
        pytest.skip("the corpus is not on this machine")
    truth = json.loads((CORPUS / f"traces/{name}.json").read_text())
    trace = read((CORPUS / f"traces/{name}.txt").read_bytes())
    roles = {"image": "build", "service": "service", "helper": "helper"}
    assert sorted((roles[image.kind], image.text) for image in trace.images) == sorted(
        (image["role"], image["image"]) for image in truth["images"]
    )
    digests = {i["image"]: i["digest"].partition("@")[2] for i in truth["images"] if "digest" in i}
    assert {image.text: image.digest for image in trace.images if image.digest} == digests
    assert trace.executor == truth["executor"].partition(" ")[0]


# --- what else a trace tells ---


@pytest.mark.parametrize(
    ("line", "digest"),
    [
        (f"Using docker image {ID} for rust:1 with digest rust@{D1} ...", D1),
        (f"Using docker image {ID} for rust:1 with digest docker.io/library/rust@{D1} ...", D1),
        # The first of RepoDigests may be another repository's: it says nothing about this tag.
        (f"Using docker image {ID} for rust:1 with digest mirror.example.com/rust@{D1} ...", None),
        (f"Using docker image {ID} for rust:1 ...", None),
    ],
)
def test_read_digest_is_kept_of_the_same_repository_only(line: str, digest: str | None) -> None:
    head = f"Using Docker executor with image rust:1 ...\n{line}\n"
    assert [(image.text, image.digest) for image in read(head).images] == [("rust:1", digest)]


FAILURES = {
    "daemon, policy line": (
        'Pulling docker image a:1 ...\nWARNING: Failed to pull image with policy "always": toomanyrequests: '
        "You have reached your pull rate limit. (manager.go:237:1s)\n"
        'ERROR: Job failed: failed to pull image "a:1" with specified policies [always]: toomanyrequests: x\n',
        "image=a:1!",
        (True, True),
    ),
    "old, without a name": (
        "Using Docker executor with image a:1 ...\nPulling docker image a:1 ...\n"
        "ERROR: Preparation failed: toomanyrequests: You have reached your pull rate limit. (docker.go:142:0s)\n",
        "image=a:1!",
        (True, True),
    ),
    "newer text of the Hub": (
        'Pulling docker image a:1 ...\nERROR: Job failed: failed to pull image "a:1": error from registry: '
        "You have reached your unauthenticated pull rate limit.\n",
        "image=a:1!",
        (True, True),
    ),
    "ends well by the next policy": (
        'Pulling docker image a:1 ...\nWARNING: Failed to pull image with policy "always": toomanyrequests: x\n'
        'Attempt #2: Trying "if-not-present" pull policy\n'
        'Using locally found image version due to "if-not-present" pull policy\n'
        f"Using docker image {ID} for a:1 ...\n",
        "image=a:1",
        (False, True),
    ),
    "retried since 19.2": (
        'Pulling docker image a:1 ...\nWARNING: Failed to pull image "a:1" (attempt #1), retrying: EOF\n'
        f"Using docker image {ID} for a:1 ...\n",
        "image=a:1",
        (False, False),
    ),
    "ends well when the preparation is repeated": (
        "Using Docker executor with image a:1 ...\nPulling docker image a:1 ...\n"
        "ERROR: Preparation failed: toomanyrequests: x (docker.go:142:0s)\n"
        "Will be retried in 3s ...\nUsing Docker executor with image a:1 ...\n"
        f"Pulling docker image a:1 ...\nUsing docker image {ID} for a:1 ...\n",
        "image=a:1",
        (False, True),
    ),
    "before any image is named": (
        "ERROR: Preparation failed: toomanyrequests: x (docker.go:142:0s)\n",
        "",
        (True, True),
    ),
    "only the service": (
        "Using Docker executor with image a:1 ...\nStarting service b:2 ...\nPulling docker image b:2 ...\n"
        'ERROR: Job failed: failed to pull image "b:2" with specified policies [always]: not found\n',
        "image=a:1 service=b:2!",
        (True, False),
    ),
    "kubernetes service, named only here": (
        KUBERNETES + "Using Kubernetes executor with image a:1 ...\nPreparing environment\n"
        'WARNING: Failed to pull image "b:2" for container "svc-0" with policy "Always": image pull failed: '
        'Back-off pulling image "b:2"\n'
        'ERROR: Job failed: prepare environment: waiting for pod running: pulling image "b:2" for container '
        "svc-0: image pull failed: toomanyrequests\n",
        "image=a:1 service=b:2!",
        (True, True),
    ),
    "kubernetes, old wording": (
        KUBERNETES + "Using Kubernetes executor with image a:1 ...\n"
        'WARNING: Failed to pull image with policy "": image pull failed: Back-off pulling image "a:1"\n'
        "ERROR: Job failed (system failure): prepare environment: image pull failed: "
        'Back-off pulling image "a:1"\n',
        "image=a:1!",
        (True, False),
    ),
    "kubernetes helper": (
        KUBERNETES + "Using Kubernetes executor with image a:1 ...\n"
        'WARNING: Failed to pull image "team/h:1" for container "helper" with policy "Always": x\n',
        "image=a:1 helper=team/h:1!",
        (False, False),
    ),
    "pod event": (
        KUBERNETES + "Using Kubernetes executor with image a:1 ...\nPreparing environment\n"
        'Warning   Failed   Failed to pull image "b:2": 429 Too Many Requests - toomanyrequests: x\n',
        "image=a:1 service=b:2!",
        (False, True),
    ),
    "another failure": (
        "Using Docker executor with image a:1 ...\nERROR: Job failed (system failure): no space left\n",
        "image=a:1",
        (False, False),
    ),
    "after the section of the executor": (
        HEADER
        + SECTION
        + "Pulling docker image a:1 ...\n"
        + SECTION_END
        + '\x1b[31;1mERROR: Job failed: failed to pull image "a:1": toomanyrequests\x1b[0;m\n',
        "image=a:1!",
        (True, True),
    ),
}


@pytest.mark.parametrize(("head", "images", "flags"), FAILURES.values(), ids=FAILURES.keys())
@pytest.mark.parametrize("stamps", [False, True])
def test_read_failed_pull_is_told(
    head: str, images: str, flags: tuple[bool, bool], stamps: bool
) -> None:
    trace = read(stamped(head) if stamps else head)
    assert named(trace) == images
    assert (trace.pull_failed, trace.rate_limited) == flags


@pytest.mark.parametrize(
    ("head", "executor"),
    [
        (DOCKER, "docker"),
        (
            'Preparing the "docker+machine" executor\nUsing Docker executor with image a ...',
            "docker+machine",
        ),
        ('Preparing the "instance" executor\nPreparing instance...\n', "instance"),
        ("Using Docker executor with image a ...", "docker"),
        ("Using Kubernetes executor with image a ...", "kubernetes"),
        ("Using Shell executor...", "shell"),
        ("Running with gitlab-runner 17.0.0 (1)\n", None),
        ("", None),
    ],
)
def test_read_executor_is_the_runners_word(head: str, executor: str | None) -> None:
    assert read(head).executor == executor


def test_read_default_image_is_told() -> None:
    line = "\x1b[32;1mUsing default image\x1b[0;m\n"
    assert read(DOCKER + line).default_image
    assert not read(DOCKER).default_image
    assert not read(DOCKER + SCRIPT + line).default_image


# --- stamps ---


def test_read_continued_line_is_joined() -> None:
    head = (
        "2026-03-04T05:06:07.000001Z 00O Using Docker executor with \n"
        "2026-03-04T05:06:07.000002Z 01O unrelated\n"
        "2026-03-04T05:06:07.000003Z 00O+image rust:1 ...\n"
        "2026-03-04T05:06:07.000004Z 00O Pulling docker image rust:1 ...\n"
    )
    assert named(read(head)) == "image=rust:1"


@pytest.mark.parametrize("stream", ["01O", "01E", "0fO", "10E"])
def test_read_other_stream_is_not_the_runner(stream: str) -> None:
    head = stamped(HEADER) + stamped("Using Docker executor with image evil:1 ...", stream)
    assert read(head).images == ()


def test_read_unstamped_line_in_stamped_trace_is_not_the_runner() -> None:
    """The logs of a service that did not start go out without stamps."""
    head = stamped(HEADER) + "Using Docker executor with image evil:1 ...\n"
    assert read(head).images == ()


# --- what scripts and services print ---

FORGERIES = {
    "after Running on": SCRIPT + "Using Docker executor with image evil:1 ...\n",
    "a section again": SCRIPT + SECTION + "Pulling docker image evil:1 ...\n" + SECTION_END,
    "a section that is for pulls": "section_start:17:get_sources\r\x1b[0K\n"
    "section_start:18:prepare_script\r\x1b[0K"
    'ERROR: Job failed: failed to pull image "evil:1": toomanyrequests\n',
    "the end of the first section": SCRIPT
    + SECTION_END
    + 'ERROR: Job failed: failed to pull image "evil:1": toomanyrequests\n',
    "a stamp": SCRIPT + stamped("Using Docker executor with image evil:1 ..."),
    "after the section": SECTION_END + "Pulling docker image evil:1 ...\n",
    "glued to another section": "section_start:17:step_script\r\x1b[0KPulling docker image evil:1 ...\n",
    "a failed pull": SCRIPT + 'ERROR: Job failed: failed to pull image "evil:1": toomanyrequests\n',
    "a pod's event": SCRIPT + 'Normal   Pulling   Pulling image "evil:1"\n',
    "a service's log": "*** WARNING: Service x probably didn't start properly.\n"
    "2026-03-04T05:06:07.123456789Z Pulling docker image evil:1 ...\n"
    "2026-03-04T05:06:07.123456789Z a\rPulling docker image evil:1 ...\n",
    "a service's log without line breaks": "2026-03-04T05:06:07.123456789Z (x)Pulling docker image evil:1 ...\n",
    "a service's log in the trace": "[service:db-db] Pulling docker image evil:1 ...\n",
    "a section again in a service's log": "2026-03-04T05:06:07.123456789Z x "
    + SECTION
    + "Pulling docker image evil:1 ...\n",
    "a section's end in a service's log": "2026-03-04T05:06:07.123456789Z x"
    + SECTION_END
    + 'ERROR: Job failed: failed to pull image "evil:1": toomanyrequests\n',
    "a runner's stamp in a service's log": "2026-03-04T05:06:07.123456Z 00O "
    "Pulling docker image evil:1 ...\n",
    "a section again before scripts": SECTION + "Pulling docker image evil:1 ...\n",
    "a section again, glued": "section_end:17:resolve_secrets\r\x1b[0K"
    + SECTION
    + "Pulling docker image evil:1 ...\n",
    "a section within a line": "x section_start:17:resolve_secrets\rPulling docker image evil:1 ...\n",
    "two marks within a line": "x section_end:17:resolve_secrets\rsection_start:17:resolve_secrets\r"
    "Pulling docker image evil:1 ...\n",
    "a section glued to a section's start": "section_start:17:resolve_secrets\r"
    "section_start:17:resolve_secrets\rPulling docker image evil:1 ...\n",
    "part of a line": "Hint: Pulling docker image evil:1 ...\nPulling docker image evil:1 ... done\n",
}


@pytest.mark.parametrize("printed", FORGERIES.values(), ids=FORGERIES.keys())
def test_read_forged_line_names_nothing(printed: str) -> None:
    head = HEADER + SECTION + "Using Docker executor with image rust:1 ...\n" + printed
    trace = read(head)
    assert named(trace) == "image=rust:1"
    assert (trace.pull_failed, trace.rate_limited) == (False, False)
    # The same words in the right place do name it, so the cases above can fail.
    assert "evil:1" in named(read(DOCKER + "Pulling docker image evil:1 ...\n"))


def test_read_services_log_that_ends_the_section_hides_nothing_after_it() -> None:
    log = "2026-03-04T05:06:07.123456789Z " + SECTION_END + "section_start:17:step_script\r\n"
    head = HEADER + SECTION + DOCKER + log + "Using Docker executor with image rust:1 ...\n"
    assert named(read(head)) == "image=rust:1"


def test_read_section_glued_to_the_end_of_another_is_the_runners() -> None:
    glued = "section_end:17:resolve_secrets\r\x1b[0K" + SECTION
    assert named(read(HEADER + glued + "Pulling docker image rust:1 ...\n")) == "image=rust:1"


@given(st.text(alphabet="ab\r\n \x1b[0;mK:$", max_size=40), st.sampled_from(sorted(LINES)))
@settings(max_examples=60, deadline=None)
def test_read_script_never_names_runner_images(noise: str, name: str) -> None:
    printed = noise + "\n" + LINES[name][0] + SECTION + LINES[name][0]
    head = HEADER + SECTION + SECTION_END + "section_start:18:get_sources\r\x1b[0K" + printed
    assert [image for image in read(head).images if image.trust == "runner"] == []


# --- build tools ---

TOOLS = {
    "buildkit": (
        "#3 [internal] load metadata for docker.io/library/node:22\n"
        f"#5 [stage 1/6] FROM docker.io/library/node:22@{D1}\n#5 resolve docker.io/library/node:22@{D1} done\n",
        f"docker.io/library/node:22={D1}",
    ),
    "buildkit for a platform": (
        "#3 [linux/arm64 internal] load metadata for quay.io/a/b:1\n",
        "quay.io/a/b:1=None",
    ),
    "frontend": (
        "#2 resolve image config for docker-image://docker.io/docker/dockerfile:1\n",
        "docker.io/docker/dockerfile:1=None",
    ),
    "buildx": (
        "#1 pulling image moby/buildkit:buildx-stable-1 2.1s done\n",
        "moby/buildkit:buildx-stable-1=None",
    ),
    "auth names only a repository": (
        "#4 [auth] library/node:pull token for registry-1.docker.io\n",
        "",
    ),
    "classic": (
        "Step 1/5 : FROM --platform=linux/amd64 node:22 AS build\nStep 4/5 : FROM build\nStep 5/5 : FROM scratch\n",
        "node:22=None",
    ),
    "classic with an argument": ("Step 2/5 : FROM ${BASE}:1\n", ""),
    "docker run": ("Unable to find image 'postgres:16' locally\n", "postgres:16=None"),
    "docker pull": (
        f"16: Pulling from library/postgres\nDigest: {D1}\nStatus: Downloaded newer image for postgres:16\r\n",
        "postgres:16=None",
    ),
    "up to date": ("Status: Image is up to date for postgres:16\n", "postgres:16=None"),
    "kaniko": (
        "\x1b[36mINFO\x1b[0m[0000] Resolved base name golang:1.22 to builder\n"
        "INFO[0000] Retrieving image manifest golang:1.22\n"
        "INFO[0001] Retrieving image golang:1.22 from registry index.docker.io\n"
        "INFO[0001] Retrieving image manifest builder\n",
        "golang:1.22=None",
    ),
    "buildah": (
        "[1/2] STEP 1/3: FROM fedora:40 AS base\n[2/2] STEP 1/2: FROM base\n"
        "Trying to pull docker.io/library/fedora:40...\n",
        "fedora:40=None",
    ),
    "podman": (
        'Resolved "a/b" as an alias (/etc/containers/registries.conf.d/000.conf)\nTrying to pull quay.io/a/b:2...\n',
        "quay.io/a/b:2=None",
    ),
    "masked": ("Unable to find image 'hub.example.com/[MASKED]:1' locally\n", ""),
    "upper case": ("Status: Downloaded newer image for Team/App:1\n", ""),
    "progress on one line": ("50%\r100%\rStatus: Downloaded newer image for a/b:3\n", "a/b:3=None"),
}


@pytest.mark.parametrize(("printed", "images"), TOOLS.values(), ids=TOOLS.keys())
@pytest.mark.parametrize("stamps", [False, True])
def test_read_build_tool_names_are_of_lower_trust(printed: str, images: str, stamps: bool) -> None:
    if stamps:
        lines = printed.split("\n")
        head = stamped(HEADER) + "".join(
            f"2026-03-04T05:06:08.000000Z 01O {line}\n" for line in lines
        )
    else:
        head = HEADER + SCRIPT + printed
    found = read(head).images
    assert " ".join(f"{image.text}={image.digest}" for image in found) == images
    assert {(image.kind, image.trust) for image in found} <= {("tool", "tool")}


def test_read_build_tool_in_the_runners_place_is_none() -> None:
    """There only the runner speaks; a service's stream is no build tool either."""
    line = "Unable to find image 'postgres:16' locally\n"
    assert read(HEADER + line).images == ()
    assert read(stamped(HEADER) + stamped(line, "0fO")).images == ()


# --- hostile text ---


@pytest.mark.parametrize(
    "head",
    [
        "a" * (4 << 20),
        "\n" * (4 << 20),
        "x\n" * (2 << 20),
        "\x1b[" * (2 << 20),
        "section_start:1:prepare_executor\r" * 120_000,
        "#2 [" * (1 << 20),
        ("Pulling docker image " + "a" * 4000 + " \n") * 1000,
        ("WARNING: " + 'pull image "' * 300 + "\n") * 1000,
        "2026-03-04T05:06:07.123456Z 00O+x\n" * 120_000,
        "".join(f"Pulling docker image a:{n} ...\n" for n in range(120_000)),
        SCRIPT + "".join(f"Status: Downloaded newer image for a:{n}\n" for n in range(90_000)),
    ],
    ids=lambda head: repr(head[:12]),
)
def test_read_hostile_four_megabytes_is_quick_and_small(head: str) -> None:
    started = time.process_time()
    trace = read(head)
    assert time.process_time() - started < 10
    assert len(trace.images) <= RUNNER_IMAGES + TOOL_IMAGES


def test_read_flood_of_tool_lines_leaves_the_runners_images() -> None:
    flood = "".join(f"Status: Downloaded newer image for a:{n}\n" for n in range(1000))
    images = read("Using Docker executor with image rust:1 ...\n" + SCRIPT + flood).images
    assert images[0].text == "rust:1"
    assert len(images) == 1 + TOOL_IMAGES


@given(st.binary(max_size=300))
def test_read_any_bytes_never_fails(head: bytes) -> None:
    assert read(head).pull_failed in (True, False)


@given(
    st.lists(
        st.sampled_from(
            [line for head, _ in [*LINES.values(), *TOOLS.values()] for line in head.splitlines()]
        )
        | st.text(max_size=30),
        max_size=20,
    ),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_read_every_name_is_a_reference(lines: list[str], stamps: bool) -> None:
    text = "\n".join(lines)
    for image in read(stamped(text) if stamps else text).images:
        parse(image.text)
        assert not set("$[% ") & set(image.text)
