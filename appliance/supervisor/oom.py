"""Whether the kernel killed for memory: its own counters, of this control group and the machine."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_ENDLESS = 1 << 60
"""What the first version of control groups has for no limit is of this size."""


class Kills(Struct, frozen=True):
    """Processes that the kernel has killed for memory so far. group: in the control group that this
    process is in; machine: anywhere. None where the kernel does not tell."""

    group: int | None = None
    machine: int | None = None
    limit_bytes: int | None = None
    """Memory that the group may take; None: no limit of its own."""

    def since(self, before: Kills) -> bool:
        """Whether one more was counted."""
        return _more(before.group, self.group) or _more(before.machine, self.machine)

    def cause(self, before: Kills) -> str:
        """Who killed a process that SIGKILL has ended, and nobody here."""
        if _more(before.group, self.group) and self.limit_bytes is not None:
            return (
                "the kernel killed it: the memory limit of this container or service, "
                f"{self.limit_bytes / 1e9:.1f} GB, was reached"
            )
        if self.since(before):
            return "the kernel killed it: the machine ran out of memory (dmesg has its report)"
        if self.group is None and self.machine is None:
            return "not by its supervisor: by hand, or by the kernel when memory ran out"
        return "by hand or by another program: the kernel counts no kill for memory"


def kills(proc: Path = _PROC, groups: Path = _GROUPS) -> Kills:
    """As the kernel counts them now."""
    group, limit = None, None
    for folder in _own_groups(proc, groups):
        # the second version of control groups, or the first
        for events, most in (
            ("memory.events", "memory.max"),
            ("memory.oom_control", "memory.limit_in_bytes"),
        ):
            if group is None:
                group = _field(_text(folder / events), "oom_kill")
                limit = _number(_text(folder / most))
    limit = limit if limit is not None and limit < _ENDLESS else None
    return Kills(group, _field(_text(proc / "vmstat"), "oom_kill"), limit)


def _own_groups(proc: Path, groups: Path) -> list[Path]:
    """Where the group's files may lie: under its whole name, or, in a container, at the top."""
    found = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" or "memory" in names.split(","):
            base = groups if number == "0" else groups / "memory"
            found += [base / path.lstrip("/"), base]
    return found


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return _number(words[1])
    return None


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _more(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before
