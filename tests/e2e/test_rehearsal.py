"""The way of README and docs/systemd.md, from the wheel to a warm mirror, as people go it."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.host import wait_until
from tests.sandbox import Quota, Sandbox
from tests.sandbox.client import Pool
from tests.sandbox.gitlab import TOKEN, Gitlab
from tests.sandbox.registry import free_port
from tests.support.process import Finished, run_skopeo
from tests.support.units import Service
from tests.support.wheel import install_alone, install_needed, run

IMAGES: Final = "/etc/prewarm/images.yml"
METRICS: Final = "/var/lib/node_exporter/textfile/prewarm.prom"
STORAGE: Final = "/var/lib/docker-registry"
PINS: Final = ("library/golang:bullseye", "library/python:3.12", "library/python:3.13")
"""What `prewarm init` pins."""
WARM: Final = (*PINS, "library/node:20")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel and what it needs in an empty environment; return its `bin`."""
    found = install_alone(tmp_path_factory.mktemp("empty"))
    install_needed(found)
    return found


class Machine:
    """A host: what lies in its /etc and /var, and its units, which came with the wheel."""

    def __init__(self, root: Path, programs: Path, env: Mapping[str, str]) -> None:
        units = programs.parent / "share/prewarm/systemd"
        self.sync = Service("prewarm.service", root, programs, units)
        self.registry = Service("prewarm-registry.service", root, None, units)
        self.prewarm = programs / "prewarm"
        self.env = env
        """What `systemctl edit prewarm.service` adds: here, how Docker Hub is reached."""

    def types(self, line: str) -> Finished:
        """Run a command by hand, as prewarm's user."""
        with self.sync.spawn(line, self.env) as process:
            stdout, stderr = process.communicate(timeout=120)
        return Finished(process.returncode, stdout, stderr)

    def told(self, command: str) -> Any:
        """Return what a command that must succeed says as JSON."""
        done = self.types(f"prewarm --config {IMAGES} {command} --json")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.json

    def edits(self, path: str, changes: Mapping[str, str]) -> None:
        """Change a file as its comments say; each text must stand there once."""
        file = self.sync.here(path)
        text = file.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{path} does not say {old}"
            text = text.replace(old, new)
        file.write_text(text)

    @contextlib.contextmanager
    def mirror(self, port: int) -> Iterator[Pool]:
        """Run the registry's unit."""
        pool = Pool(f"http://127.0.0.1:{port}")

        def answers() -> bool:
            assert process.poll() is None, process.communicate()
            with contextlib.suppress(OSError, http.client.HTTPException):
                return pool.request("GET", "/v2/").status == 200
            return False

        with self.registry.start() as process:
            try:
                wait_until(answers, "registry")
                yield pool
            finally:
                pool.close()
                process.kill()


def test_readme_leads_from_the_wheel_to_a_warm_mirror(programs: Path, tmp_path: Path) -> None:
    with (
        Sandbox(mirrors=0, names=True, quotas={"acme": Quota(200)}) as box,
        Gitlab() as site,
    ):
        for name in WARM:
            box.push(*name.split(":"), name=name)
        project = site.add_project("team/app", "build:\n  image: node:20\n  script: [make]\n")
        site.add_job(project, "build")
        machine = Machine(tmp_path, programs, box.names.env())
        port = free_port()
        writes_images_yml(machine, site, port)
        keeps_the_secrets(machine, box)
        writes_the_registrys_configuration(machine, port)
        with machine.mirror(port) as mirror:
            looks_before(machine, box, mirror)
            syncs(machine, box)
            reads_the_metrics(machine)
            reads_the_status(machine)
            reads_the_report(machine)
            syncs_again(machine, box)
            pulls(port, tmp_path)


def writes_images_yml(machine: Machine, site: Gitlab, port: int) -> None:
    """`prewarm init`, then the keys that the README names."""
    unit = machine.sync
    unit.here("/etc/prewarm").mkdir(parents=True)
    run(machine.prewarm, "init", unit.here(IMAGES))
    metrics = unit.offer(str(Path(METRICS).parent)) / Path(METRICS).name
    machine.edits(
        IMAGES,
        {
            "  - http://127.0.0.1:5000\n": f"  - url: http://127.0.0.1:{port}\n"
            f"    storage: {machine.registry.offer(STORAGE)}\n",
            "#registries:\n#  docker.io:\n": "registries:\n  docker.io:\n",
            "#    budget: {pulls: 200": "    budget: {pulls: 200",
            "#gitlab:\n#  url: https://gitlab.example.org ": f"gitlab:\n  url: {site.url} ",
            f"#metrics: {METRICS}": f"metrics: {metrics}",
        },
    )
    checked = machine.types(f"prewarm --config {IMAGES} check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def keeps_the_secrets(machine: Machine, box: Sandbox) -> None:
    machine.sync.give("/etc/prewarm/gitlab-token", f"{TOKEN}\n", 0o600)
    machine.sync.give("/etc/prewarm/auth.json", box.authfile().read_text(), 0o600)


def writes_the_registrys_configuration(machine: Machine, port: int) -> None:
    folder = machine.sync.here("/root/registry")
    config = ("--config", machine.sync.here(IMAGES))
    run(machine.prewarm, *config, "client-config", "registry", "--output", folder)
    written = (folder / "prewarm-writer.yml").read_text()
    assert f"127.0.0.1:{port}" in written
    machine.registry.give("/etc/docker/registry/prewarm-writer.yml", written)


def looks_before(machine: Machine, box: Sandbox, mirror: Pool) -> None:
    """What is all right, and what a sync would do; no pull is spent, nothing written."""
    doctor = machine.types(f"prewarm --config {IMAGES} doctor --json")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    plan = machine.told("sync --dry-run")
    assert [one["action"] for one in plan["images"]] == ["copy"] * len(WARM)
    assert box.hub.access.gets() == []
    assert json.loads(mirror.request("GET", "/v2/_catalog").body)["repositories"] == []


def syncs(machine: Machine, box: Sandbox) -> None:
    """As the timer starts it."""
    done = machine.sync.run(machine.env)
    assert (done.returncode, machine.sync.failed(done.returncode)) == (0, False), done.stderr
    assert "4 images: 4 copied; 4 pulls spent" in done.stdout
    assert {entry.account for entry in box.hub.access.gets()} == {"acme"}
    assert not [secret for secret in (TOKEN, "sesame") if secret in done.stdout + done.stderr]


def reads_the_metrics(machine: Machine) -> None:
    """As node_exporter does, which is another user."""
    file = machine.sync.here(METRICS)
    assert file.stat().st_mode & 0o444 == 0o444
    found = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(file.read_text())
        for sample in family.samples
    }
    assert found["prewarm_budget_pulls", "acme", "docker.io"] == 200
    assert found["prewarm_budget_used", "acme", "docker.io"] == 4
    assert found["prewarm_actions_total", "copy"] == found["prewarm_pulls_total",] == 4
    assert found["prewarm_images", "fresh"] == 4
    assert found["prewarm_gitlab_token_expiry_timestamp_seconds",] > 0


def reads_the_status(machine: Machine) -> None:
    status = machine.told("status")
    assert status["coverage"] == 1
    assert status["images"] == {"tracked": 4, "fresh": 4, "stale": 0, "missing": 0}
    budget = status["budgets"]["docker.io"]
    assert (budget["account"], budget["used"], budget["remaining"]) == ("acme", 4, 176)
    assert status["last_sync"]["exit"] == 0


def reads_the_report(machine: Machine) -> None:
    """The page in a folder of a web server, which is another user, as docs/report.md tells."""
    page = "/var/www/prewarm/index.html"
    file = machine.sync.offer("/var/www/prewarm") / "index.html"
    machine.sync.keys["ReadWritePaths"].append("/var/www/prewarm")
    done = machine.types(f"prewarm --config {IMAGES} report --html {page}")
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o444 == 0o444
    told = file.read_text().replace("<wbr>", "")
    assert "<title>prewarm: 100% served locally</title>" in told
    assert '<data value="4">4</data> of 200</strong>' in told
    assert "last sync ended well: 4 copied, 4 pulls" in told
    assert "node:20" in told


def syncs_again(machine: Machine, box: Sandbox) -> None:
    """An unchanged night costs nothing."""
    box.hub.access.clear()
    done = machine.sync.run(machine.env)
    assert done.returncode == 0, done.stderr
    assert "4 images: 4 fresh; 0 pulls spent" in done.stdout
    assert box.hub.access.gets() == []


def pulls(port: int, folder: Path) -> None:
    """As a runner's dockerd, which asks the mirror for Docker Hub's images at its root."""
    for name in WARM:
        images = (f"docker://127.0.0.1:{port}/{name}", f"dir:{folder / 'pulled' / name}")
        Path(images[1].removeprefix("dir:")).mkdir(parents=True)
        done = run_skopeo(["copy", "--src-tls-verify=false", *images], folder)
        assert done.returncode == 0, done.stderr
