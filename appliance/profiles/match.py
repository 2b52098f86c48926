"""Hardware -> the profile that fits it best, and why."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from appliance.errors import HardwareError, NotFoundError
from appliance.hardware import Gpu, HardwareSnapshot
from appliance.profiles.schema import Match, Profile
from appliance.profiles.store import Stored

GIB = 1 << 30


class Chosen(Struct, frozen=True):
    """why: one clause, for people."""

    profile: Profile
    why: str


def candidates(profiles: Iterable[Stored], hardware: HardwareSnapshot) -> list[Chosen]:
    """The profiles for this machine that are of the best kind there is: those that name the GPU,
    else those for its memory, else those for any GPU, else the CPU's. The user's own come first,
    then those that use fewer GPUs.

    NotFoundError when none matches.
    """
    ranked = sorted(
        (
            (-rank, not s.own, m.count, -m.cores_min, s.profile.name, Chosen(s.profile, told))
            for s in profiles
            for m in [s.profile.match]
            if not mismatch(s.profile, hardware) and (s.own or not rounds(s.profile))
            for rank, why in [_rank(m, hardware)]
            for told in [f"your own: {s.profile.summary}" if s.own else why]
        ),
        key=lambda entry: entry[:5],
    )
    if not ranked:
        raise NotFoundError(
            "no profile is for this machine.",
            "Name one with --profile; `appliance profile list` shows them.",
            code="APL-NOT-013",
        )
    return [entry[5] for entry in ranked if entry[0] == ranked[0][0]]


def rounds(profile: Profile) -> bool:
    """Whether it makes 8 bits of a plain checkpoint: that changes answers, so it is never chosen
    for anybody, only named."""
    return profile.model.get("quantization", "auto") not in ("auto", "none")


def choose(profiles: Iterable[Stored], hardware: HardwareSnapshot) -> Chosen:
    """The first of the candidates: the profile where no model is known yet."""
    return candidates(profiles, hardware)[0]


def mismatch(profile: Profile, hardware: HardwareSnapshot) -> str:
    """Why a profile is not for this machine; empty when it is."""
    m, gpus = profile.match, hardware.gpus
    if m.device == "cpu":
        few = hardware.cores < m.cores_min
        return f"it needs {m.cores_min} cores and there are {hardware.cores}" if few else ""
    if not gpus:
        return "it needs a GPU and none can be seen" + (
            f" ({hardware.problem})" if hardware.problem else ""
        )
    if len(gpus) < m.count:
        return f"it needs {m.count} GPUs and {len(gpus)} can be seen"
    for gpu in gpus[: m.count]:
        if m.gpus and not any(_named(gpu, part) for part in m.gpus):
            return f"it is for {' or '.join(m.gpus)} and GPU {gpu.index} is a {gpu.name}"
        gib = gpu.memory_total / GIB
        if m.memory_min_gib and gib < m.memory_min_gib:
            return f"it needs {m.memory_min_gib:g} GiB and GPU {gpu.index} has {gib:.1f}"
        if m.memory_max_gib and gib > m.memory_max_gib:
            return f"it is for at most {m.memory_max_gib:g} GiB and GPU {gpu.index} has {gib:.1f}"
    return ""


def require(profile: Profile, hardware: HardwareSnapshot) -> None:
    """Refuses a GPU profile where it cannot run at all: HardwareError. A profile for another GPU
    than this one is allowed; `mismatch` tells."""
    m = profile.match
    if m.device == "cuda" and len(hardware.gpus) < m.count:
        found = len(hardware.gpus)
        seen = f"{found} can be seen" if found else "none can be seen"
        raise HardwareError(
            f"profile {profile.name} needs {m.count} GPU(s) and {seen}"
            + (f": {hardware.problem}." if hardware.problem else "."),
            "Use `--profile cpu`, or run `appliance doctor` to see what is missing.",
            code="APL-HW-002",
        )


def _rank(m: Match, hardware: HardwareSnapshot) -> tuple[int, str]:
    if m.device == "cpu":
        problem = f" ({hardware.problem})" if hardware.problem else ""
        return 0, "no GPU can be seen" + problem
    name = hardware.gpus[0].name
    if m.gpus:
        return 3, f"it is made for {name}"
    if m.memory_min_gib or m.memory_max_gib:
        return 2, f"by the memory of {name}"
    return 1, f"no profile names {name}"


def _named(gpu: Gpu, part: str) -> bool:
    return part.casefold() in gpu.name.casefold()
