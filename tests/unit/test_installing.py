"""What docs/install.md has people install fits prewarm: manifests, image and Puppet class."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes_validate import ValidationError  # type: ignore[import-untyped]

from prewarm import __version__
from prewarm.cli.main import cli
from prewarm.clients.config_files import client_config
from prewarm.config.reader import load
from prewarm.core.settings import Mirror, Settings, Upstream
from tests.support.kubernetes import NEWEST, assert_manifest_is_valid
from tests.support.process import run_prewarm

ROOT = Path(__file__).parents[2]
INSTALL = (ROOT / "docs/install.md").read_text()
KUBERNETES = ROOT / "docs/kubernetes"
CONTAINERFILE = (ROOT / "docs/container/Containerfile").read_text()
PUPPET = (ROOT / "docs/puppet/prewarm.pp").read_text()
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS = [
    (f"{path.stem}-{manifest['kind']}-{manifest['metadata']['name']}", manifest)
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(path.read_text())
]
OLDEST_MINOR = 29
VERSIONS = [f"1.{minor}" for minor in range(OLDEST_MINOR, int(NEWEST.split(".")[1]) + 1)]


def found(kind: str, name: str) -> dict[str, Any]:
    (manifest,) = (
        one for _, one in MANIFESTS if (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return dict(manifest)


JOB: dict[str, Any] = found("CronJob", "prewarm")["spec"]["jobTemplate"]["spec"]
MIRROR: dict[str, Any] = found("Deployment", "mirror")["spec"]
PODS = {"prewarm": JOB["template"]["spec"], "mirror": MIRROR["template"]["spec"]}
CONTAINERS = {
    one["name"]: one
    for pod in PODS.values()
    for one in (*pod.get("initContainers", ()), *pod["containers"])
}


def environment(container: dict[str, Any]) -> dict[str, str]:
    """Return what a container of prewarm's image is started with."""
    joined = CONTAINERFILE.replace("\\\n", " ")
    (line,) = re.findall(r"^ENV (.*)$", joined, re.MULTILINE)
    image = dict(word.split("=", 1) for word in shlex.split(line))
    return image | {one["name"]: one["value"] for one in container.get("env", ())}


def seconds(text: str) -> float:
    number, unit = int(text[:-1]), text[-1]
    return timedelta(**{{"h": "hours", "m": "minutes"}[unit]: number}).total_seconds()


# --- Kubernetes: what the API server says ---


@pytest.mark.parametrize("manifest", [one for _, one in MANIFESTS], ids=[n for n, _ in MANIFESTS])
def test_manifest_is_one_of_the_kubernetes_api(manifest: dict[str, Any]) -> None:
    for version in VERSIONS:
        assert_manifest_is_valid(manifest, version)
    assert manifest["metadata"].get("namespace", "prewarm") == "prewarm"


def test_manifest_with_a_key_that_kubernetes_does_not_know_is_refused() -> None:
    wrong = found("PersistentVolumeClaim", "prewarm") | {"storage": "2Gi"}
    with pytest.raises(ValidationError):
        assert_manifest_is_valid(wrong)


def test_install_page_names_the_oldest_kubernetes_that_is_tested() -> None:
    assert f"Kubernetes 1.{OLDEST_MINOR} or later" in INSTALL


def test_kustomization_has_every_manifest_but_the_secret() -> None:
    there = {path.name for path in KUBERNETES.glob("*.yaml")}
    assert set(KUSTOMIZATION["resources"]) == there - {"kustomization.yaml", "secret.yaml"}


def test_kustomization_gives_the_pods_prewarms_image_of_this_version() -> None:
    (image,) = KUSTOMIZATION["images"]
    assert image["newTag"] == __version__
    assert {one["image"] for one in CONTAINERS.values()} == {
        image["name"],
        "docker.io/library/registry:2.8.3",
    }
    built = f"{image['newName']}:{image['newTag']}"
    assert built in CONTAINERFILE
    assert built in INSTALL


# --- Kubernetes: what prewarm says ---


def test_configmap_passes_prewarm_check(tmp_path: Path) -> None:
    (name, text), *others = found("ConfigMap", "prewarm")["data"].items()
    (tmp_path / name).write_text(text)
    checked = run_prewarm(["check", name], tmp_path)
    assert (checked.returncode, others) == (0, []), checked.stderr


def test_configmap_is_the_configuration_that_the_pod_reads() -> None:
    (name,) = found("ConfigMap", "prewarm")["data"]
    where = environment(CONTAINERS["prewarm"])["PREWARM_CONFIG"]
    assert where == f"{mounts('prewarm')['config']}/{name}"


def mounts(container: str) -> dict[str, str]:
    return {one["name"]: one["mountPath"] for one in CONTAINERS[container]["volumeMounts"]}


def test_pod_keeps_state_and_credentials_where_prewarm_looks_for_them() -> None:
    env = environment(CONTAINERS["prewarm"])
    assert env["STATE_DIRECTORY"] == mounts("prewarm")["state"]
    assert env["CREDENTIALS_DIRECTORY"] == mounts("prewarm")["credentials"]
    assert env["CREDENTIALS_DIRECTORY"] in CONTAINERS["credentials"]["command"]
    assert mounts("credentials")["secret"] in CONTAINERS["credentials"]["command"]


def test_secret_has_the_files_of_the_credentials_directory() -> None:
    assert found("Secret", "prewarm")["stringData"].keys() == {
        "gitlab-token",
        "auth.json",
        "pgpass",
    }
    read = "".join(path.read_text() for path in (ROOT / "prewarm").rglob("*.py"))
    assert {'"gitlab-token"', '"auth.json"'} <= set(re.findall(r'"[a-z.-]+"', read))


def test_job_gives_a_sync_the_time_that_it_may_take(tmp_path: Path) -> None:
    (command, *args) = CONTAINERS["prewarm"]["args"]
    context = cli.commands[command].make_context(command, list(args))
    waits = seconds(args[args.index("--wait-for") + 1])
    assert context.params
    (tmp_path / "images.yml").write_text(found("ConfigMap", "prewarm")["data"]["images.yml"])
    runs = load(tmp_path / "images.yml").limits.run_time
    ends = PODS["prewarm"]["terminationGracePeriodSeconds"]
    assert JOB["activeDeadlineSeconds"] >= runs + waits + ends


def test_job_fails_for_a_person_alone() -> None:
    """75 and 143 are no failure (systemd's SuccessExitStatus=), what needs an operator is one."""
    unit = (ROOT / "systemd/prewarm.service").read_text()
    (taken,) = re.findall(r"^SuccessExitStatus=(.*)$", unit, re.MULTILINE)
    disruption, codes = JOB["podFailurePolicy"]["rules"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert codes["onExitCodes"] == {
        "containerName": "prewarm",
        "operator": "In",
        "values": [int(code) for code in taken.split()],
    }
    assert {disruption["action"], codes["action"]} == {"Ignore"}
    assert (JOB["backoffLimit"], PODS["prewarm"]["restartPolicy"]) == (0, "Never")
    assert found("CronJob", "prewarm")["spec"]["concurrencyPolicy"] == "Forbid"


def test_schedule_uses_two_windows_a_day() -> None:
    minute, hours, *rest = found("CronJob", "prewarm")["spec"]["schedule"].split()
    assert (minute, rest) == ("0", ["*", "*", "*"])
    times = [int(hour) for hour in hours.split(",")]
    assert len(times) == 2
    assert min(after - before for before, after in pairwise([*times, times[0] + 24])) > 6


# --- Kubernetes: what the pods may do ---


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_pod_has_no_right_that_it_does_not_need(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert not [one for one in volumes.values() if "hostPath" in one]
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"memory"}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert {one["name"] for one in container["volumeMounts"]} <= volumes.keys()
    named = {one["name"] for _, manifest in MANIFESTS for one in [manifest["metadata"]]}
    for volume in volumes.values():
        match volume:
            case {"configMap": {"name": name}} | {"persistentVolumeClaim": {"claimName": name}}:
                assert name in named


def test_pod_runs_as_the_user_of_the_image_and_writes_where_skopeo_and_python_do() -> None:
    (user,) = re.findall(r"^USER (\d+):\1$", CONTAINERFILE, re.MULTILINE)
    assert PODS["prewarm"]["securityContext"]["runAsUser"] == int(user)
    writable = {
        one["mountPath"] for one in CONTAINERS["prewarm"]["volumeMounts"] if not one.get("readOnly")
    }
    assert writable == {"/var/lib/prewarm", "/tmp", "/var/tmp"}


# --- Kubernetes: the mirror ---


def test_prewarm_alone_may_speak_to_the_writer(tmp_path: Path) -> None:
    (tmp_path / "images.yml").write_text(found("ConfigMap", "prewarm")["data"]["images.yml"])
    (mirror,) = load(tmp_path / "images.yml").mirrors
    url = urlsplit(mirror.url)
    (port,) = found("Service", str(url.hostname))["spec"]["ports"]
    assert port["port"] == url.port
    (writer,) = CONTAINERS["writer"]["ports"]
    assert writer["name"] == port["targetPort"]
    to_writer, to_reader = found("NetworkPolicy", "mirror")["spec"]["ingress"]
    assert to_writer["ports"] == [{"port": port["targetPort"]}]
    labels = JOB["template"]["metadata"]["labels"]
    assert to_writer["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert to_reader == {"ports": [{"port": "reader"}]}


def test_runners_read_the_mirror_at_its_client_url(tmp_path: Path) -> None:
    (tmp_path / "images.yml").write_text(found("ConfigMap", "prewarm")["data"]["images.yml"])
    (mirror,) = load(tmp_path / "images.yml").mirrors
    ingress = found("Ingress", "mirror")["spec"]
    (rule,), (tls,) = ingress["rules"], ingress["tls"]
    assert mirror.client_url == f"https://{rule['host']}"
    assert tls["hosts"] == [rule["host"]]
    (path,) = rule["http"]["paths"]
    (port,) = found("Service", path["backend"]["service"]["name"])["spec"]["ports"]
    assert port["name"] == path["backend"]["service"]["port"]["name"]
    assert port["targetPort"] == CONTAINERS["reader"]["ports"][0]["name"]
    size = found("PersistentVolumeClaim", "mirror")["spec"]["resources"]["requests"]["storage"]
    assert mirror.max_size is not None
    assert mirror.max_size < int(size.removesuffix("Gi")) * 2**30


@pytest.mark.parametrize("role", ["writer", "reader"])
def test_registry_is_what_client_config_prints_but_for_places(role: str) -> None:
    text = found("ConfigMap", "mirror")["data"][f"{role}.yml"]
    container = CONTAINERS[role]
    assert container["command"] == ["registry", "serve", f"{mounts(role)['config']}/{role}.yml"]
    written = yaml.safe_load(text)
    (port,) = container["ports"]
    assert written["http"].pop("addr") == f":{port['containerPort']}"
    assert written["storage"].pop("filesystem") == {"rootdirectory": mounts(role)["storage"]}

    settings = Settings(
        Path("/etc/prewarm/images.yml"),
        (Mirror("http://127.0.0.1:5000", "https://mirror.example.org"),),
        (Upstream("docker.io", "https://registry-1.docker.io"),),
    )
    files = {file.name: file.text for file in client_config("registry", settings)}
    printed = yaml.safe_load(files[f"prewarm-{role}.yml"])
    del printed["http"]["addr"], printed["storage"]["filesystem"]
    printed["http"].pop("tls", None)  # the Ingress ends it
    assert written == printed


# --- the image ---


def test_containerfile_copies_what_is_there_and_installs_what_the_lock_pins() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert [name for name in names if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | {*wheel["packages"], *wheel.get("shared-data", ())} <= set(names)
    asked = [line for line in CONTAINERFILE.splitlines() if "pip " in line]
    indexed = [line for line in asked if "--no-index" not in line and "uninstall" not in line]
    assert len(indexed) == 1, "only one step asks an index"
    assert "--require-hashes" in CONTAINERFILE.partition(indexed[0])[2].partition("\n\n")[0]
    assert "--requirement requirements.lock" in CONTAINERFILE


def test_containerfile_installs_extras_that_prewarm_has() -> None:
    """pip only warns of one that is not there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.findall(r"'prewarm\[([a-z]+)\]'", CONTAINERFILE)
    assert extra in project["optional-dependencies"]


def test_containerfile_starts_prewarm_itself_and_has_skopeo() -> None:
    final = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert final.splitlines()[-1] == 'ENTRYPOINT ["prewarm"]'
    assert {"ca-certificates", "python3", "skopeo"} <= set(final.split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'description="{project["description"]}"' in final
    assert f'licenses="{project["license"]}"' in final


# --- Puppet and the page ---


def console_lines() -> Iterator[str]:
    """Yield the commands of the page's console blocks, continued lines joined."""
    for block in re.findall(r"```console\n(.*?)```", INSTALL, re.DOTALL):
        joined = block.replace("\\\n", " ")
        yield from re.findall(r"^[#$] (.*)$", joined, re.MULTILINE)


def prewarm_commands() -> Iterator[list[str]]:
    """Yield the arguments of each prewarm that the page starts."""
    for line in console_lines():
        command = re.sub(r"^sudo (-u prewarm )?(-g docker )?", "", line)
        if command.startswith("prewarm "):
            yield shlex.split(command, comments=True)[1:]


@pytest.mark.parametrize("text", [INSTALL, PUPPET, CONTAINERFILE], ids=["page", "class", "image"])
def test_release_is_this_version_everywhere(text: str) -> None:
    assert set(re.findall(r"(?<![\w./])prewarm[-:](\d[\d.]*\d)", text)) <= {__version__}
    assert __version__ in text


def test_install_page_types_commands_and_options_that_prewarm_has() -> None:
    typed = list(prewarm_commands())
    assert {args[0] for args in typed} >= {"init", "check", "doctor", "sync", "status"}
    for args in typed:
        if args[0].startswith("--"):
            assert args[0] in {name for one in cli.params for name in one.opts} | {"--version"}
            continue
        cli.commands[args[0]].make_context(args[0], args[1:])  # UsageError for one that is not


@pytest.mark.parametrize("text", [INSTALL, PUPPET], ids=["install.md", "prewarm.pp"])
def test_page_names_units_that_are_there(text: str) -> None:
    """Those in systemd/, and those that client-config registry prints."""
    printed = client_config_units()
    there = {path.name for path in (ROOT / "systemd").iterdir()} | printed
    named = set(re.findall(r"\bprewarm[a-z-]*@?\.(?:service|timer)\b", text))
    assert named
    assert named - there == set()


def client_config_units() -> set[str]:
    settings = Settings(
        Path("/etc/prewarm/images.yml"),
        (Mirror("http://127.0.0.1:5000", "http://127.0.0.1:5000"),),
        (Upstream("docker.io", "https://registry-1.docker.io"),),
    )
    return {file.name for file in client_config("registry", settings)}
