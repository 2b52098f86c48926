"""The board and the alert rules ask for what a live run exports; names are read, not listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql import OF_A_SCRAPE, Asked, asked_of
from stand import Stand, until

from appliance.hardware import Gpu
from appliance.metrics import render
from appliance.supervisor.export import dump

DEPLOY = Path(__file__).parents[2] / "deploy"
BOARD = json.loads((DEPLOY / "grafana/appliance.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
_FIELD = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")
_OF_LABELS = re.compile(r"\$labels\.(\w+)")


def test_the_parser_sees_every_label() -> None:
    query = 'sum by (le, a) (rate(x_bucket{b=~"y"}[5m])) / on (c) group_left () (z > 0)'
    assert asked_of(query) == {"x_bucket": {"le", "a", "b", "c"}, "z": {"c"}}
    with pytest.raises(ValueError):
        asked_of("sum(rate(x[5m])")


def exported(text: str) -> Asked:
    """Names of samples as they stand on the page, each with all its labels."""
    found: Asked = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture(scope="module")
def live(served: Stand) -> Asked:
    """Of a live run that has answered and refused; GPUs' series from their table."""
    url = served.url
    chat = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    assert httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60).status_code == 200
    refused = chat | {"model": "nobody"}
    assert httpx.post(f"{url}/v1/chat/completions", json=refused).status_code == 404
    page = ""

    def whole() -> bool:
        nonlocal page
        page = httpx.get(f"{url}/metrics").text
        return "appliance_engine_restarts_total" in page and "model_not_found" in page

    until(whole, "the page has what the supervisor exports")
    gpu = Gpu(0, "GPU-a", "X", 80, 60, 90, 0.9, 612.0, 700.0, 63, 1905, ("heat",), (), 0)
    return exported(page) | {
        name: labels
        for name, labels in exported(render(dump("ready", 0, 0.0, [gpu]))).items()
        if name.startswith("appliance_gpu_")
    }


def unknown(query: str, live: Asked) -> list[str]:
    plain = query.replace("$__rate_interval", "5m")
    found = []
    for name, labels in asked_of(plain).items():
        if name == "up":
            found += [f"up has no {label}" for label in labels - OF_A_SCRAPE]
        elif name not in live:
            found.append(f"{name} is not exported")
        else:
            more = labels - live[name] - OF_A_SCRAPE
            found += [f"{name} has no label {label}" for label in more]
    return found


def test_every_query_of_the_board_names_what_is_exported(live: Asked) -> None:
    wrong = []
    for panel in PANELS:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            wrong += [(panel["title"], text) for text in unknown(target["expr"], live)]
            shown = set(_FIELD.findall(target["legendFormat"]))
            known = set().union(*(live[name] for name in names_of(target["expr"])))
            wrong += [(panel["title"], f"legend {s}") for s in shown - known - OF_A_SCRAPE]
    assert not wrong


def test_every_variable_of_the_board_is_asked_of_what_is_exported(live: Asked) -> None:
    variables: list[dict[str, Any]] = BOARD["templating"]["list"]
    assert [v["name"] for v in variables] == ["datasource", "job", "instance", "model"]
    for variable in variables[1:]:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
        assert asked is not None
        assert unknown(asked[1], live) == []
        [name] = names_of(asked[1])
        assert asked[2] in live[name] | OF_A_SCRAPE
    known = {f"${v['name']}" for v in variables} | {"$__rate_interval"}
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert set(re.findall(r"\$\w+", target["expr"])) <= known, panel["title"]


@pytest.mark.parametrize("rule", RULES, ids=[r["alert"] for r in RULES])
def test_every_alert_is_about_what_is_exported(rule: dict[str, Any], live: Asked) -> None:
    assert unknown(rule["expr"], live) == []
    told = " ".join(rule["annotations"].values())
    known = set().union(*(live.get(name, set()) for name in names_of(rule["expr"])))
    assert set(_OF_LABELS.findall(told)) <= known | OF_A_SCRAPE


def names_of(query: str) -> Asked:
    """With Grafana's own word for a time made one."""
    return asked_of(query.replace("$__rate_interval", "5m"))


def test_probes_and_scrapes_of_the_examples_are_answered(served: Stand) -> None:
    text = "".join(path.read_text() for path in (DEPLOY / "kubernetes").glob("*.yaml"))
    asked = set(re.findall(r"path: (/\w+)", text))
    assert asked == {"/startupz", "/livez", "/readyz", "/metrics"}
    for path in asked:
        assert httpx.get(served.url + path).status_code == 200, path


def test_a_request_is_found_by_its_id(served: Stand) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    head = {"x-request-id": "looked-for"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=chat, headers=head, timeout=60)
    used = answer.json()["usage"]
    found = ""

    def written() -> bool:
        nonlocal found
        found = served.cli("logs", "--request", answer.json()["id"], "--json").stdout
        return "appliance.request/1" in found

    until(written, "the request log has the line")
    [row] = [json.loads(line)["request"] for line in found.splitlines() if "request/1" in line]
    assert (row["id"], row["status"], row["output_tokens"]) == (
        "looked-for", 200, used["completion_tokens"],
    )  # fmt: skip
    refused = served.cli("logs", "--request", "looked-for", "--curl")
    assert refused.returncode == 2 and "--request-log content" in refused.stderr
