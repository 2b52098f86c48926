"""appliance key, and the door that `up` opens to strangers only when told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import keys, paths
from appliance.cli import asking as chat
from appliance.errors import NotAuthorisedError

Cli = Callable[..., Any]


def test_add_list_revoke(cli: Cli) -> None:
    assert "No keys" in cli("key", "list").out
    said = cli("key", "add", "ci", "--requests-per-minute", "60")
    key = said.out.strip()
    assert said.code == 0 and key.startswith(keys.PREFIX)
    assert "this once" in said.err
    shown = json.loads(cli("key", "add", "bob", "--json").out)
    assert shown["name"] == "bob" and shown["file"] == str(paths.keys_file())
    listed = cli("key", "list").out
    assert "ci" in listed and "60" in listed and key not in listed
    data = json.loads(cli("key", "list", "--json").out)
    assert [k["name"] for k in data["keys"]] == ["ci", "bob"]
    assert "sha256" not in data["keys"][0]
    assert cli("key", "add", "boss", "--admin").code == 0
    assert [k["admin"] for k in json.loads(cli("key", "list", "--json").out)["keys"]] == [
        False,
        False,
        True,
    ]
    assert cli("key", "revoke", "ci").code == 0
    again = cli("key", "revoke", "ci")
    assert again.code == 4 and "bob" in again.err
    assert cli("key", "add", "a b").code == 2


def plan(cli: Cli, *words: str) -> Any:
    return cli("up", "--load-format", "dummy", "--dry-run", "--json", *words)


def test_the_users_keys_are_asked_for_once_there_is_one(cli: Cli) -> None:
    assert json.loads(plan(cli).out)["config"]["serve"]["keys_file"] == ""
    cli("key", "add", "ci")
    assert json.loads(plan(cli).out)["config"]["serve"]["keys_file"] == str(paths.keys_file())
    assert plan(cli, "--host", "0.0.0.0").code == 0
    open_ = json.loads(plan(cli, "--no-auth").out)["config"]["serve"]
    assert open_["no_auth"] is True
    cli("key", "revoke", "ci")
    assert json.loads(plan(cli).out)["config"]["serve"]["keys_file"] == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "box.example"])
def test_strangers_are_let_in_only_when_told_to(cli: Cli, host: str) -> None:
    said = cli("up", "--load-format", "dummy", "--dry-run", "--host", host)
    assert said.code == 2 and "--no-auth" in said.err and "appliance key add" in said.err
    assert plan(cli, "--host", host, "--no-auth").code == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_no_key(cli: Cli, host: str) -> None:
    assert plan(cli, "--host", host).code == 0


def test_a_file_of_keys_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    said = plan(cli, "--set", f"serve.keys_file={tmp_path / 'none.json'}")
    assert said.code == 2 and "cannot be read" in said.err
    said = plan(cli, "--set", "serve.keys_file=keys.json")
    assert said.code == 2 and "--set serve.keys_file=/" in said.err


def test_chat_without_a_key_says_where_to_put_one() -> None:
    refused = chat._refusal(401, b'{"error": {"message": "this server asks for an API key."}}')
    assert isinstance(refused, NotAuthorisedError)
    assert "APPLIANCE_API_KEY" in refused.hint
