"""`appliance reload` on a run of stand-ins: files and flags anew, all of them or none."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_stage import given_of

from appliance import keys, paths
from appliance.cli.given import read_given, write_given
from appliance.cli.main import group
from appliance.profiles.reasons import WHY
from appliance.runtime.config import read_config

Cli = Callable[..., Any]


def settings(text: str) -> None:
    path = paths.config_dir() / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_files_are_read_anew(cli: Cli, live: Path) -> None:
    assert cli("reload").out == "default: no setting has changed\n"
    settings("[serve]\nmax_queue = 9\n[schedule]\npolicy = 'lpm'\n[engine]\nattention='reference'")
    said = cli("reload")
    assert said.code == 0, said.err
    assert "these hold now\n  serve.max_queue  4096 -> 9" in said.out
    assert "now    appliance restart default\n" in said.out
    assert "engine.attention  auto -> reference" in said.out
    assert read_config(paths.config_file(live)).serve.max_queue == 9
    # what holds is not told again; what does not hold is
    told = json.loads(cli("reload", "--json").out)
    assert told["applied"] == []
    assert [c["key"] for c in told["restart"]] == ["schedule.policy"]
    assert [c["key"] for c in told["up"]] == ["engine.attention"]
    settings("")
    assert "serve.max_queue  9 -> 4096" in cli("reload").out


def test_the_reason_changes_with_the_value(cli: Cli, live: Path) -> None:
    """What was asked for is not explained by what would have been there else."""
    here = {"field": "serve.max_queue", "value": 4096, "source": "default", "reason": "as ever"}
    config = {"serve": {"max_queue": 4096}}
    paths.plan_file(live).write_text(json.dumps({"answers": [here], "config": config}))

    def told() -> dict[str, Any]:
        (answer,) = json.loads(paths.plan_file(live).read_text())["answers"]
        return dict(answer)

    settings("[serve]\nmax_queue = 9")
    assert cli("reload").code == 0
    assert (told()["value"], told()["reason"]) == (9, "asked for")
    assert told()["source"].startswith("file ")
    settings("")
    assert cli("reload").code == 0
    assert (told()["source"], told()["reason"]) == ("default", WHY["serve.max_queue"])


def test_a_setting_by_hand_stays(cli: Cli, live: Path) -> None:
    assert "log_level  info -> debug" in cli("reload", "--set", "log_level=debug").out
    settings('log_level = "error"')
    assert "no setting has changed" in cli("reload").out  # a flag is stronger than a file
    told = json.loads(cli("reload", "--set", "engine.tp=2", "--json").out)
    down, up = told["up_command"].split(" && ")
    assert down == "appliance down default"
    words = shlex.split(up)
    assert words[:4] == ["appliance", "up", "--name", "default"]
    assert "log_level=debug" in words and "engine.tp=2" in words and words[-1] == "-d"
    # what is printed can be typed
    context = group.get_command(None, "up").make_context("up", words[2:])
    assert context.params["settings"] == ("serve.port=0", "log_level=debug", "engine.tp=2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[serve]\nmax_queue = 9\nmax_quue = 1", "Did you mean 'serve.max_queue'"),
        ("[serve]\nmax_queue = 9\ndrain_s = -1", "serve.drain_s cannot be"),
        ("[serve", "is not TOML"),
        ("[serve]\nmax_queue = 9\nkeys_file = '/not/there.json'", "/not/there.json"),
        ("[serve]\nmax_queue = 9\nhost = '0.0.0.0'", "no API key is asked"),
    ],
)
def test_nothing_is_applied_when_one_is_wrong(cli: Cli, live: Path, text: str, says: str) -> None:
    before = paths.config_file(live).read_bytes(), paths.given_file(live).read_bytes()
    settings(text)
    said = cli("reload")
    assert said.code == 2 and says in said.err
    assert (paths.config_file(live).read_bytes(), paths.given_file(live).read_bytes()) == before


def test_keys(cli: Cli, live: Path, own_home: Path) -> None:
    """The user's own are asked for from now on, and never ceased to be by themselves."""
    cli("key", "add", "alice")
    assert "serve.keys_file" in cli("reload").out
    assert read_config(paths.config_file(live)).serve.keys_file == str(paths.keys_file())
    cli("key", "revoke", "alice")
    assert "no setting has changed" in cli("reload").out
    assert read_config(paths.config_file(live)).serve.keys_file == str(paths.keys_file())


def test_keys_of_a_file_of_the_run(cli: Cli, live: Path, own_home: Path) -> None:
    plain = own_home / "keys.txt"
    plain.write_text("a-key-of-sixteen-or-more\n")
    plain.chmod(0o600)
    given = given_of(live.name, api_key_file=str(plain))
    write_given(given, live)
    keys.write_digests(paths.run_keys(live), ["another-key-of-sixteen"])
    assert "1 key(s)" in cli("reload").out
    (held,) = keys.read_keys(paths.run_keys(live))
    assert held.sha256 == keys.digest(b"a-key-of-sixteen-or-more")
    plain.write_text("short")
    assert cli("reload").code == 2
    assert keys.read_keys(paths.run_keys(live)) == (held,)


def test_a_socket_that_a_file_gains_is_weaker_than_the_port_that_was_typed(
    cli: Cli, live: Path
) -> None:
    settings('[serve]\nuds = "/run/llm.sock"')
    assert cli("reload").out == "default: no setting has changed\n"


def test_where_there_is_nothing_to_reload(cli: Cli, live: Path) -> None:
    assert cli("reload", "nobody").code == 4
    paths.given_file(live).unlink()
    said = cli("reload")
    assert said.code == 2 and "APL-USE-043" in said.err
    cli("down", "--now")
    assert cli("reload").code == 3


def test_content_is_told(cli: Cli, live: Path) -> None:
    said = cli("reload", "--set", "serve.request_log=content")
    assert "prompts and answers are kept" in said.err
    assert read_given(live).flags["serve.request_log"] == "content"
