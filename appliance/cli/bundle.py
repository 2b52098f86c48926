"""doctor --bundle: what helps somebody else to see what is wrong, without secrets."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from pathlib import Path
from typing import Any

from appliance import paths
from appliance.errors import UsageError
from appliance.profiles.compose import config_files

_SECRET_NAMES = re.compile(r"token|key|secret|password|credential|auth", re.IGNORECASE)
_SECRETS = re.compile(
    r"\b(?:hf_|sk-|ms-|apl-|apk_)[A-Za-z0-9_-]{8,}"
    r"|(?i:bearer)\s+[^\s\"']+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
    r"|\b[0-9a-fA-F]{64}\b"
)
_SETTING = re.compile(
    r"([\"']?[\w.-]*(?:token|secret|password|credential|api_?key)[\w.-]*[\"']?\s*[=:]\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;]+)",
    re.IGNORECASE,
)
_VARIABLES = ("APPLIANCE_", "HF_", "MODELSCOPE_", "CUDA", "NCCL_", "NVIDIA_", "TORCH", "XDG_")
_LOG_BYTES = 1 << 20


def redacted(text: str) -> str:
    """Keys, tokens, passwords in addresses and digests taken out; the home folder as ~."""
    text = _SECRETS.sub("[redacted]", text)
    text = _SETTING.sub(r'\1"[redacted]"', text)
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def variables() -> dict[str, str]:
    """What the environment says to us; a name that sounds secret shows only that it is there."""
    return {
        name: "[redacted]" if _SECRET_NAMES.search(name) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES)
    }


def write_bundle(path: Path, doctor: dict[str, Any], version: dict[str, Any]) -> list[str]:
    """Writes a .tar.gz readable by the user alone and returns the names within."""
    parts = {
        "doctor.json": json.dumps(doctor, indent=1),
        "version.json": json.dumps(version, indent=1),
        "environment.json": json.dumps(variables(), indent=1),
    }
    for file in (*config_files(), *sorted(paths.user_profiles().glob("*.toml"))):
        text = _read(file)
        if text:
            parts[f"config/{file.parent.name}-{file.name}"] = text
    for plan in sorted(paths.runtime_dir().glob("*/plan.json")):
        parts[f"runs/{plan.parent.name}-plan.json"] = _read(plan)
    for log in sorted(paths.logs_dir().glob("*.log")):
        parts[f"logs/{log.name}"] = _read(log)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name, text in parts.items():
                data = redacted(text).encode()
                member = tarfile.TarInfo(f"appliance-bundle/{name}")
                member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
                tar.addfile(member, io.BytesIO(data))
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {e.strerror}.", "Name another file.") from e
    return sorted(parts)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
