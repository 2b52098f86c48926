"""Units of systemd, as text: one of a user, and one of the whole machine with a user of its own."""

from __future__ import annotations

import grp
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.paths import MACHINE

USER = "appliance"
"""Whom the unit of the machine runs as."""

_KEPT = (
    "HF_HOME", "HF_HUB_CACHE", "MODELSCOPE_CACHE", "CUDA_VISIBLE_DEVICES",
    "APPLIANCE_CONFIG_DIR", "APPLIANCE_STATE_DIR", "APPLIANCE_CACHE_DIR",
)  # fmt: skip
"""Variables that decide where things are, kept from the shell that installs; no secrets."""

_PERMANENT = "2 4 7 8 9"
"""Exit codes that say what is wrong with what was asked for: another start would end the same."""

_HARDENED = (
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectHostname=yes",
    "LockPersonality=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "SystemCallArchitectures=native",
)
_GPUS = (
    "# PrivateDevices would hide the GPUs, MemoryDenyWriteExecute end what compiles kernels",
    "DevicePolicy=closed",
    "DeviceAllow=char-nvidia* rw",
    "DeviceAllow=char-nvidia-uvm rw",
    "DeviceAllow=char-nvidia-caps rw",
    "DeviceAllow=char-drm rw",
)


def user_unit(words: Sequence[str], drain_s: int, name: str) -> str:
    """Told when it is ready, watched, reloaded, drained before it is ended."""
    kept = {k: os.environ[k] for k in _KEPT if os.environ.get(k)}
    after = ("After=network-online.target",)
    return _unit(words, drain_s, name, after, _environment(kept), (), "default.target")


def machine_unit(
    words: Sequence[str], drain_s: int, name: str, reads: Sequence[Path], port: int | None = None
) -> str:
    """As user_unit, with folders that systemd makes, and shut in but for GPUs and network.

    reads: what it has to reach wherever that lies: this Python, a model's folder. port: the one
    that was asked for.
    """
    low = "CAP_NET_BIND_SERVICE" if port is not None and port < 1024 else ""
    groups = [g for g in ("video", "render") if _is_group(g)]
    shut = "read-only" if any(_at_home(path) for path in reads) else "yes"
    own = [
        f"User={USER}",
        f"Group={USER}",
        *([f"SupplementaryGroups={' '.join(groups)}"] if groups else []),
        f"WorkingDirectory={MACHINE['STATE']}",
        "ConfigurationDirectory=appliance",
        "ConfigurationDirectoryMode=2770",
        "StateDirectory=appliance",
        "StateDirectoryMode=0750",
        "CacheDirectory=appliance",
        "CacheDirectoryMode=0750",
        "LogsDirectory=appliance",
        "LogsDirectoryMode=0750",
        "RuntimeDirectory=appliance",
        "RuntimeDirectoryMode=0700",
        "# several units share it, and one that stops takes nothing from the others",
        "RuntimeDirectoryPreserve=yes",
        "# the unit may make no device nodes itself",
        "ExecStartPre=-+/usr/bin/nvidia-modprobe -c=0 -u",
        f"CapabilityBoundingSet={low}",
        *([f"AmbientCapabilities={low}"] if low else []),
        *_HARDENED,
        f"ProtectHome={shut}",
        *_GPUS,
    ]
    after = (
        "Wants=network-online.target",
        "After=network-online.target nvidia-persistenced.service",
    )
    return _unit(words, drain_s, name, after, _environment(variables()), own, "multi-user.target")


def variables() -> dict[str, str]:
    """Where the unit of the machine keeps weights and compiled kernels."""
    state, cache = MACHINE["STATE"], MACHINE["CACHE"]
    found = {
        "HF_HOME": f"{state}/hf",
        "MODELSCOPE_CACHE": f"{state}/modelscope",
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "FLASHINFER_WORKSPACE_BASE": str(cache),
        "CUDA_CACHE_PATH": f"{cache}/cuda",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
    }
    kept = {k: os.environ[k] for k in _KEPT if os.environ.get(k) and not k.startswith("APPLIANCE_")}
    return found | kept


def _unit(
    words: Sequence[str],
    drain_s: int,
    name: str,
    after: Sequence[str],
    environment: Sequence[str],
    own: Sequence[str],
    wanted_by: str,
) -> str:
    return "\n".join(
        [
            "[Unit]",
            "Description=appliance: a served language model",
            *after,
            "",
            "[Service]",
            "Type=notify",
            "NotifyAccess=main",
            "SyslogIdentifier=appliance",
            "UMask=0077",
            f"ExecStart={command(*words)}",
            f"ExecReload={command('reload', name)}",
            *environment,
            "# loading has no limit of its own; the supervisor ends what hangs",
            "TimeoutStartSec=infinity",
            "WatchdogSec=30",
            "Restart=on-failure",
            "RestartSec=5",
            f"RestartPreventExitStatus={_PERMANENT}",
            "# SIGTERM drains; the processes behind the supervisor end with it",
            "KillMode=mixed",
            f"TimeoutStopSec={drain_s + 60}",
            "LimitNOFILE=65536",
            "LimitMEMLOCK=infinity",
            *own,
            "",
            "[Install]",
            f"WantedBy={wanted_by}",
            "",
        ]
    )


def command(*words: str) -> str:
    """The appliance by this Python, as a unit's line has it."""
    return " ".join(_quoted(word) for word in [sys.executable, "-m", "appliance", *words])


def _environment(kept: Mapping[str, str]) -> list[str]:
    return [f"Environment={_quoted(f'{name}={value}')}" for name, value in kept.items()]


def _quoted(word: str) -> str:
    """A word of a unit's line: % and $ are systemd's own."""
    safe = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return safe if shlex.quote(word) == word else '"' + safe.replace('"', '\\"') + '"'


def _at_home(path: Path) -> bool:
    return any(path.is_relative_to(home) for home in ("/home", "/root", "/run/user"))


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True
