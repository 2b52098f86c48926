"""The board as a file, the alert rules as texts, and promtool's opinion where it is at hand."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from appliance.cli import main
from appliance.supervisor import alerts

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES_FILE = DEPLOY / "prometheus/alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]


def test_the_board_is_what_its_program_writes() -> None:
    made = runpy.run_path(str(DEPLOY / "grafana/make.py"))
    assert (DEPLOY / "grafana/appliance.json").read_text() == made["text"]()


def test_panels_lie_side_by_side() -> None:
    board = json.loads((DEPLOY / "grafana/appliance.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("rule", RULES, ids=[r["alert"] for r in RULES])
def test_an_alert_says_what_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert set(rule["annotations"]) == {"summary", "description"}
    assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
    description = rule["annotations"]["description"]
    told = re.findall(r"`([^`]+)`", description)
    assert told or "panel" in description
    for command in told:
        if command.startswith("appliance "):
            _is_a_command(command.split()[1:])


def _is_a_command(words: list[str]) -> None:
    group = main.group
    with click.Context(group) as context:
        command = group.get_command(context, words[0])
        while isinstance(command, click.Group):
            words = words[1:]
            command = command.get_command(context, words[0])
    assert command is not None, words
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    assert {w.partition("=")[0] for w in words if w.startswith("-")} <= options, words


def test_the_limits_are_those_of_the_dashboard() -> None:
    by_name = {rule["alert"]: rule["expr"] for rule in RULES}
    assert by_name["ApplianceKvFull"].endswith(f"> {alerts.KV_HIGH}")
    assert by_name["ApplianceQueueWait"].endswith(f"> {alerts.QUEUE_WAIT_S:g}")
    least = by_name["ApplianceDiskLow"].rpartition("< ")[2]
    assert float(least) == alerts.LEAST_DISK


def test_every_alert_has_a_test_of_promtools() -> None:
    text = (DEPLOY / "prometheus/alerts_test.yaml").read_text()
    assert not [rule["alert"] for rule in RULES if not re.search(rf"\b{rule['alert']}\b", text)]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    "words", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")]
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *words], cwd=RULES_FILE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
