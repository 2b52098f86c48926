"""Dockerfile, compose file and Kubernetes objects against the code that they start."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from appliance.cli import main
from appliance.profiles.compose import environment_values
from appliance.runtime.api.gate import OPEN
from appliance.runtime.config import ServeConfig
from appliance.supervisor.health import Limits

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LEAVES_WITHIN_S = ServeConfig().drain_s + Limits().term_s + 5.0
"""After SIGTERM: what runs is drained, engines are ended, files are closed."""


def instructions() -> list[tuple[str, str]]:
    """(word, the rest) of each instruction of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [(w, rest.strip()) for w, _, rest in (x.partition(" ") for x in whole.splitlines()) if w]


def the(word: str) -> str:
    [rest] = [rest for w, rest in instructions() if w == word]
    return rest


def arguments() -> dict[str, str]:
    """Build arguments with their defaults."""
    return dict(rest.split("=", 1) for w, rest in instructions() if w == "ARG")


def environment() -> dict[str, str]:
    return {
        name: value
        for w, rest in instructions()
        if w == "ENV"
        for name, value in (pair.split("=", 1) for pair in shlex.split(rest))
    }


class Loader(yaml.SafeLoader):
    """Knows compose's `!reset`, which takes away what the file before it says."""


Loader.add_constructor("!reset", lambda loader, node: None)


def objects(name: str) -> list[dict[str, Any]]:
    return list(yaml.load_all((ROOT / "deploy" / name).read_text(), Loader))


COMPOSE: dict[str, Any] = objects("compose.yaml")[0]
HOME = "/home/appliance"
CLAIM, DEPLOYMENT, SERVICE = objects("kubernetes/appliance.yaml")
[POD_MONITOR] = objects("kubernetes/podmonitor.yaml")
POD: dict[str, Any] = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
[PULL] = POD["initContainers"]


def parse(words: list[str]) -> click.Context:
    """UsageError when the command line would not take them."""
    with click.Context(main.group) as context:
        command = main.group.get_command(context, words[0])
        assert command is not None, words
        return command.make_context(words[0], words[1:], parent=context)


def seconds(text: str) -> float:
    unit = {"s": 1, "m": 60}[text[-1]]
    return float(text[:-1]) * unit


# The image


def test_what_is_copied_is_there_and_not_ignored() -> None:
    let_in = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = [words.split() for word, words in instructions() if word == "COPY"]
    sources = [source for words in copied for source in words[:-1]]
    assert len(sources) == len(set(sources)) and set(sources) == let_in
    assert all((ROOT / source).exists() for source in sources)
    needed = {
        "pyproject.toml",
        PYPROJECT["project"]["readme"],
        *PYPROJECT["project"]["license-files"],
    }
    needed |= set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"])
    assert needed <= set(sources)


def test_the_image_installs_and_starts_what_the_project_says() -> None:
    [extras] = re.findall(r"for extra in ([\w ]+);", the_run("for extra"))
    assert set(extras.split()) <= set(PYPROJECT["project"]["optional-dependencies"])
    taken = {f"/tmp/{extra}.txt" for extra in extras.split()}
    installs = [rest for w, rest in instructions() if w == "RUN" and "-r /tmp" in rest]
    assert {name for rest in installs for name in re.findall(r"-r (\S+)", rest)} == taken
    assert all("-c constraints.txt" in rest for rest in installs)
    [script] = PYPROJECT["project"]["scripts"]
    assert json.loads(the("ENTRYPOINT")) == [script]
    parse(json.loads(the("CMD")))
    assert the("EXPOSE") == str(ServeConfig().port)
    told = environment()
    known = environment_values({k: v for k, v in told.items() if k.startswith("APPLIANCE_")})
    assert known == {"serve.host": "0.0.0.0"}
    assert json.loads(the("VOLUME")) == [HOME]
    assert told["TRITON_CACHE_DIR"].startswith(HOME)


def test_there_is_a_stage_for_each_kind_of_machine() -> None:
    stages = {rest.split()[-1] for w, rest in instructions() if w == "FROM" and " AS " in rest}
    assert [rest for w, rest in instructions() if w == "FROM"][-1] == "${FOR}"
    assert arguments()["FOR"] == "gpu" and {"gpu", "cpu"} < stages
    [cpu] = objects("compose.cpu.yaml")
    assert cpu["services"]["appliance"]["build"]["args"]["FOR"] in stages
    assert set(cpu["services"]) == set(COMPOSE["services"])


def the_run(word: str) -> str:
    [found] = [rest for w, rest in instructions() if w == "RUN" and word in rest]
    return found


def test_the_compilers_are_of_torchs_cuda() -> None:
    """Together with torch, so that pip takes the version that torch asks for."""
    run = the_run("cuda-toolkit")
    [version] = re.findall(r'"cuda-toolkit\[[\w,]+\]==(\d+)\.\d+\.\*"', run)
    assert f"nvidia/cu{version}" in run and f"libcudart.so.{version}" in run
    assert "-r /tmp/gpu.txt" in run
    home = environment()["CUDA_HOME"]
    assert home.startswith(the_run("python3 -m venv").split("venv ")[-1])


def test_nobody_is_root() -> None:
    [uid] = re.findall(r"useradd .*--uid (\d+)", the_run("useradd"))
    assert the("USER") == f"{uid}:{uid}"
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert {context["runAsUser"], context["runAsGroup"], context["fsGroup"]} == {int(uid)}
    for container in (CONTAINER, PULL):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]}


def test_the_same_health_is_asked_everywhere() -> None:
    told = the("HEALTHCHECK")
    command = json.loads(told.partition("CMD ")[2])
    asked = dict(re.findall(r"--([a-z-]+)=(\S+)", told))
    health = COMPOSE["services"]["appliance"]["healthcheck"]
    assert health["test"] == ["CMD", *command]
    for name in ("interval", "timeout", "start-period"):
        assert health[name.replace("-", "_")] == asked[name]
    assert health["retries"] == int(asked["retries"])
    parse(command[1:])
    start = CONTAINER["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] == seconds(asked["start-period"])


def test_the_one_liner() -> None:
    """Stands in the Dockerfile and in the page for operators."""
    pages = [(ROOT / "Dockerfile").read_text(), (ROOT / "docs/operate/deploy.md").read_text()]
    for page in pages:
        plain = re.sub(r"\\\n#? *", " ", page)
        line, *_ = re.findall(r"docker run (-d .*)", plain)
        words = shlex.split(line)
        assert int(words[words.index("--stop-timeout") + 1]) >= LEAVES_WITHIN_S
        assert f"127.0.0.1:{ServeConfig().port}:{ServeConfig().port}" in words
        assert f"appliance:{HOME}" in words
        parse(words[words.index("appliance") + 1 :])


# compose


def test_compose_starts_what_the_image_holds() -> None:
    service, pull = COMPOSE["services"]["appliance"], COMPOSE["services"]["pull"]
    assert (ROOT / "deploy" / service["build"]["context"] / "Dockerfile").exists()
    for one in (service, pull):
        parse([word for word in one["command"] if word != "${MODEL:-}"] + ["org/model"])
        volumes = dict(volume.split(":") for volume in one["volumes"])
        assert set(volumes) <= set(COMPOSE["volumes"])
        assert volumes == {"home": HOME}
    assert seconds(service["stop_grace_period"]) >= LEAVES_WITHIN_S
    port = ServeConfig().port
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


# Kubernetes


def test_probes_need_no_key_and_have_the_time() -> None:
    probes = {name: CONTAINER[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}
    assert set(paths.values()) <= OPEN
    [port] = CONTAINER["ports"]
    assert port["containerPort"] == ServeConfig().port
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}
    assert all(probe["timeoutSeconds"] <= probe["periodSeconds"] for probe in probes.values())


def test_a_pod_has_the_time_to_drain() -> None:
    [_, pause] = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] >= float(pause) + LEAVES_WITHIN_S
    probe = CONTAINER["readinessProbe"]
    assert float(pause) >= probe["periodSeconds"] * probe["failureThreshold"]


def test_containers_start_what_the_image_holds() -> None:
    assert parse(CONTAINER["args"]).params["model"] == PULL["args"][1]
    parse(PULL["args"])
    for entry in CONTAINER["env"]:
        assert environment_values({entry["name"]: entry["value"]})
    [keys] = [e["value"] for e in CONTAINER["env"] if e["name"] == "APPLIANCE_SERVE_KEYS_FILE"]
    mounts = {m["name"]: m["mountPath"] for m in CONTAINER["volumeMounts"]}
    assert str(Path(keys).parent) == mounts["keys"]
    assert mounts["home"] == HOME
    volumes = {v["name"]: v for v in POD["volumes"]}
    assert set(mounts) == set(volumes)
    assert not volumes["keys"]["secret"]["defaultMode"] & 0o022  # or the keys are refused
    assert volumes["home"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert "nvidia.com/gpu" in CONTAINER["resources"]["limits"]
    assert DEPLOYMENT["spec"]["strategy"]["type"] == "Recreate"


@pytest.mark.parametrize(
    "selector",
    [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        SERVICE["spec"]["selector"],
        POD_MONITOR["spec"]["selector"]["matchLabels"],
    ],
)
def test_selectors_find_the_pod(selector: dict[str, str]) -> None:
    assert selector.items() <= DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()


def test_service_and_monitor_reach_the_port() -> None:
    [port] = CONTAINER["ports"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]
    [endpoint] = POD_MONITOR["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
