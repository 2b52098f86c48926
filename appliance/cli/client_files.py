"""Files in which clients keep what server they talk to: changed in our lines only, and backed up.

A change is a function from the file's text to its new text. What others have written there stays;
a second change of the same kind changes nothing.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from appliance.errors import ApplianceError, UsageError

BEGIN, END = "# >>> appliance", "# <<< appliance"
_KEY = re.compile(
    r"^([-+ ].*?(?:key|token|secret|password)[\"']?\s*[:=]\s*[\"']?(?!none\b)[^\s\"']{0,4})"
    r"[^\s\"',]*",
    re.IGNORECASE | re.MULTILINE,
)
"""A line that sets a key, which is not shown beyond its first letters."""
_OURS = re.compile(rf"^[ \t]*{BEGIN}[^\n]*\n.*?^[ \t]*{END}[^\n]*\n", re.MULTILINE | re.DOTALL)


class Place(NamedTuple):
    """url: without /v1. model: a name it answers to. key: the server asks for one, and it is in the
    variable APPLIANCE_API_KEY; it is never written."""

    url: str
    model: str
    key: bool = False


class Target(NamedTuple):
    """A client's file. change: its text -> its new text. then: what to do with it."""

    path: Path
    change: Callable[[str], str]
    then: str


class Written(NamedTuple):
    """What became of a file. backup: of what it was; None where there was none, or no change."""

    path: Path
    diff: str
    backup: Path | None


def target_of(client: str, at: Place) -> Target | None:
    """The file of a client; None for one that is a library of programs."""
    home = Path.home()
    if client == "open-webui":
        pairs = {"OPENAI_API_BASE_URL": f"{at.url}/v1"} | (
            {} if at.key else {"OPENAI_API_KEY": "none"}
        )
        return Target(
            Path.cwd() / "open-webui.env",
            lambda old: with_lines(old, pairs, "="),
            "docker run --env-file open-webui.env … ghcr.io/open-webui/open-webui:main"
            + _key_hint(at, "-e OPENAI_API_KEY=$APPLIANCE_API_KEY"),
        )
    if client == "continue":
        entry = [
            f"- name: {at.model} (appliance)",
            "  provider: openai",
            f"  model: {at.model}",
            f"  apiBase: {at.url}/v1",
            "  apiKey: " + ("${{ secrets.APPLIANCE_API_KEY }}" if at.key else "none"),
            "  roles: [chat, edit, apply]",
        ]
        return Target(
            home / ".continue" / "config.yaml",
            lambda old: with_model(old, entry),
            "Continue reads it at once; choose the model in its list."
            + _key_hint(at, "put APPLIANCE_API_KEY into ~/.continue/.env"),
        )
    if client == "claude-code":
        return Target(
            home / ".claude" / "settings.json",
            lambda old: with_json(old, _claude_settings(at)),
            "claude",
        )
    if client == "codex":
        base = os.environ.get("CODEX_HOME")
        return Target(
            (Path(base) if base else home / ".codex") / "appliance.config.toml",
            lambda old: with_toml(old, _codex_keys(at)),
            "codex --profile appliance"
            + _key_hint(at, "with APPLIANCE_API_KEY in its environment"),
        )
    if client == "aider":
        settings = {"model": f"openai/{at.model}", "openai-api-base": f"{at.url}/v1"}
        settings |= {} if at.key else {"openai-api-key": "none"}
        return Target(
            home / ".aider.conf.yml",
            lambda old: with_lines(old, settings, ": "),
            "aider" + _key_hint(at, "with AIDER_OPENAI_API_KEY=$APPLIANCE_API_KEY"),
        )
    return None


def _key_hint(at: Place, text: str) -> str:
    return f"     {text}" if at.key else ""


def _claude_settings(at: Place) -> dict[str, Any]:
    env = {
        "ANTHROPIC_BASE_URL": at.url,
        "ANTHROPIC_MODEL": at.model,
        "ANTHROPIC_SMALL_FAST_MODEL": at.model,
    }
    if at.key:
        return {"env": env, "apiKeyHelper": "printenv APPLIANCE_API_KEY"}
    return {"env": env | {"ANTHROPIC_AUTH_TOKEN": "none"}}


def _codex_keys(at: Place) -> list[str]:
    """A profile of its own, which Codex lays over the user's settings."""
    provider = {"name": "appliance", "base_url": f"{at.url}/v1", "wire_api": "responses"}
    provider |= {"env_key": "APPLIANCE_API_KEY"} if at.key else {}
    return [
        f'model = "{at.model}"',
        'model_provider = "appliance"',
        *(f'model_providers.appliance.{name} = "{value}"' for name, value in provider.items()),
    ]


def plan(target: Target) -> tuple[str, str]:
    """(the file's text now, its new text). UsageError when it is of a form we do not change."""
    try:
        old = target.path.read_text()
    except FileNotFoundError:
        old = ""
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is no text"
        raise UsageError(
            f"{target.path} cannot be read: {why}.", "`--print` shows what to put there."
        ) from e
    try:
        return old, target.change(old)
    except ValueError as e:
        raise UsageError(
            f"{target.path} is not changed: {e}.",
            "`--print` shows what to put there by hand.",
            code="APL-USE-041",
        ) from e


def diff_of(path: Path, old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(),
        new.splitlines(),
        str(path) if old else "/dev/null",
        str(path),
        lineterm="",
    )
    return _KEY.sub(r"\1…", "\n".join(lines))


def write(path: Path, old: str, new: str) -> Path | None:
    """Replaces the file at once; the backup of what it was. A link stays one. A new file is for its
    owner alone."""
    place = path.resolve()
    backup = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = place.stat().st_mode & 0o777 if place.exists() else 0o600
        if old:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            backup = place.with_name(f"{place.name}.{stamp}.bak")
            backup.write_text(old)
            backup.chmod(mode)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        with os.fdopen(handle, "w") as file:
            file.write(new)
        os.chmod(temporary, mode)
        os.replace(temporary, place)
    except OSError as e:
        raise ApplianceError(
            f"{path} cannot be written: {e.strerror}.", "`--print` shows what to put there."
        ) from e
    return backup


# Changes


def with_lines(old: str, pairs: Mapping[str, str], between: str) -> str:
    """`name<between>value` lines set; other lines stay where they are."""
    sign = re.escape(between.strip())
    text = _ended(old)
    for name, value in pairs.items():
        line = f"{name}{between}{value}\n"
        mine = re.compile(rf"^{re.escape(name)}[ \t]*{sign}[^\n]*\n", re.MULTILINE)
        found = list(mine.finditer(text))
        if len(found) > 1:
            raise ValueError(f"it sets {name} {len(found)} times")
        start, end = found[0].span() if found else (len(text), len(text))
        text = text[:start] + line + text[end:]
    return text


def with_json(old: str, values: Mapping[str, Any]) -> str:
    """Values set in a JSON object, the others kept."""
    try:
        known = json.loads(old) if old.strip() else {}
    except ValueError as e:
        raise ValueError(f"it is not JSON: {e}") from e
    if not isinstance(known, dict):
        raise ValueError("it holds no JSON object")
    merged = _merged(known, values)
    return (
        old if merged == known and old else json.dumps(merged, indent=2, ensure_ascii=False) + "\n"
    )


def _merged(known: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(known)
    for name, value in values.items():
        there = out.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            out[name] = _merged(there, value)
        else:
            out[name] = value
    return out


def with_toml(old: str, lines: list[str]) -> str:
    """Keys of ours in a block before all others, where no table has begun."""
    rest = _OURS.sub("", _ended(old))
    new = "\n".join([BEGIN, *lines, END]) + "\n" + rest
    try:
        tomllib.loads(rest)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"it is not TOML: {e}") from e
    try:
        tomllib.loads(new)
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"it sets the same elsewhere: {e}") from e
    return new


def with_model(old: str, entry: list[str]) -> str:
    """A list item of ours first under `models:` of a YAML file that Continue reads."""
    text = _OURS.sub("", _ended(old))
    if not text.strip():
        text = "name: appliance\nversion: 1.0.0\nschema: v1\nmodels:\n"
    text = re.sub(r"^models:[ \t]*\[[ \t]*\][ \t]*$", "models:", text, flags=re.MULTILINE)
    heads = list(re.finditer(r"^models:([^\n]*)\n", text, re.MULTILINE))
    if len(heads) > 1 or (heads and heads[0][1].partition("#")[0].strip()):
        raise ValueError("its models are written in a way that is not understood")
    if not heads:
        text += "models:\n"
        heads = list(re.finditer(r"^models:([^\n]*)\n", text, re.MULTILINE))
    at = heads[0].end()
    item = re.match(r"(?:[ \t]*(?:#[^\n]*)?\n)*([ ]*)- ", text[at:])
    indent = item[1] if item else "  "
    block = "".join(f"{indent}{line}\n" for line in [BEGIN, *entry, END])
    return text[:at] + block + text[at:]


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
