"""What a run was started with, kept in its folder, and composed anew when it reloads."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from appliance import paths
from appliance.errors import UsageError
from appliance.keys import read_keys
from appliance.profiles import compose, store
from appliance.runtime.config import ModelConfig, RuntimeConfig, ServeConfig, is_loopback


class Given(Struct, frozen=True):
    """profile: the one that was chosen. flags, environment: setting -> value. files: settings
    files, the weakest first. own_keys: file of the user's keys. composed: what these made, before
    any `auto` was answered; api_key_file: as it was named, gpus: as --gpus had it."""

    name: str
    profile: str
    flags: dict[str, Any]
    environment: dict[str, Any]
    files: tuple[str, ...]
    own_keys: str
    composed: RuntimeConfig
    model: str | None = None
    api_key_file: str | None = None
    gpus: str | None = None


def own_keys(path: Path, wanted: bool = False) -> dict[str, tuple[Any, str]]:
    """The user's own keys are asked for as soon as there is one. wanted: even where there is none
    any more, for a run that asks for keys never ceases to by itself."""
    if not wanted and (not path.exists() or not read_keys(path)):
        return {}
    return {"serve.keys_file": (str(path), "of the keys")}


def address_that_was_typed(flags: dict[str, Any], others: set[str]) -> dict[str, Any]:
    """A host or a port among the flags is stronger than a socket that weaker layers set."""
    typed = flags.keys() & {"serve.host", "serve.port"}
    return {"serve.uds": "", **flags} if typed and "serve.uds" in others else flags


def write_given(given: Given, run: Path) -> None:
    path = paths.given_file(run)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(given), indent=1))
    temporary.replace(path)


def read_given(run: Path) -> Given:
    """UsageError for a run of which this is not known."""
    try:
        return msgspec.json.decode(paths.given_file(run).read_bytes(), type=Given)
    except (OSError, msgspec.DecodeError) as e:
        raise UsageError(
            f"what the run '{run.name}' was started with is not known here.",
            f"It is of another version: appliance down {run.name}, then appliance up.",
            code="APL-USE-043",
        ) from e


def compose_anew(given: Given) -> compose.Composed:
    """With the files and the profile as they are now. UsageError names what is wrong in which."""
    old = given.composed
    asks = old.serve.keys_file == given.own_keys
    files = own_keys(Path(given.own_keys), asks) | compose.file_values(map(Path, given.files))
    environment = _converted(given.environment)
    flags = address_that_was_typed(_converted(given.flags), {*files, *environment})
    model = ModelConfig(path=old.model.path, id=old.model.id, revision=old.model.revision)
    return compose.compose(
        given.name,
        old.dir,
        model,
        store.find(given.profile).profile if given.profile != "none" else None,
        environment=environment,
        files=files,
        flags=flags,
    )


def _converted(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON keeps lists, settings are tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}


def check_door(serve: ServeConfig, *, keys_to_come: bool = False) -> None:
    """UsageError when strangers would be answered, the keys cannot be read, or there can be no such
    socket. keys_to_come: their file is written when the run starts."""
    if serve.uds:
        _check_path(serve.uds)
    if serve.no_auth or keys_to_come:
        return
    if serve.keys_file:
        if not Path(serve.keys_file).is_absolute():
            raise UsageError(
                f"serve.keys_file is {serve.keys_file}, which depends on the folder one is in.",
                f"--set serve.keys_file={Path(serve.keys_file).resolve()}",
                code="APL-USE-027",
            )
        read_keys(Path(serve.keys_file))
    elif serve.uds:
        if serve.uds_mode == "666":
            raise UsageError(
                f"everybody on this machine reaches {serve.uds} (serve.uds_mode is 666), and no "
                "API key is asked for.",
                "appliance key add NAME        makes a key, which clients then send\n"
                "--set serve.uds_mode=660      lets this user and its group in\n"
                "--no-auth                     answers anybody who reaches it",
                code="APL-USE-026",
            )
    elif not is_loopback(serve.host):
        raise UsageError(
            f"others than this machine reach {serve.host or '0.0.0.0'}, and no API key is asked "
            "for.",
            "appliance key add NAME     makes a key, which clients then send\n"
            "--host 127.0.0.1           serves this machine only\n"
            "--no-auth                  answers anybody who reaches it",
            code="APL-USE-026",
        )


def _check_path(uds: str) -> None:
    """UsageError where there can be no socket of this name."""
    if not Path(uds).is_absolute():
        raise UsageError(
            f"serve.uds is {uds}, which depends on the folder one is in.",
            f"--uds {Path(uds).absolute()}",
            code="APL-USE-027",
        )
    over = len(os.fsencode(uds)) - paths.SOCKET_NAME
    if over <= 0:
        return
    short = [paths.runtime_dir() / Path(uds).name, paths.runtime_dir() / "llm.sock"]
    fits = next((p for p in short if len(os.fsencode(p)) <= paths.SOCKET_NAME), "/tmp/llm.sock")
    raise UsageError(
        f"{uds} is {over} bytes too long for the name of a Unix socket, which has at most "
        f"{paths.SOCKET_NAME}.",
        f"--uds {fits}",
        code="APL-USE-002",
    )


def content_warning(config: RuntimeConfig) -> list[str]:
    """What is to be said where prompts and answers are written down."""
    if config.serve.request_log != "content":
        return []
    place = paths.request_log(config.run, 0).parent
    return [f"prompts and answers are kept in {place} (serve.request_log is content)"]


def up_again(given: Given) -> str:
    """The command that starts the whole run again with all that was asked of it."""
    words = ["appliance", "up", *([given.model] if given.model else []), "--name", given.name]
    words += ["--profile", given.profile] if given.profile != "none" else []
    words += ["--gpus", given.gpus] if given.gpus else []
    words += ["--api-key-file", given.api_key_file] if given.api_key_file else []
    for key, value in given.flags.items():
        if not (given.api_key_file and key == "serve.keys_file"):
            words += ["--set", f"{key}={_text(value)}"]
    return f"appliance down {shlex.quote(given.name)} && {shlex.join([*words, '-d'])}"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
