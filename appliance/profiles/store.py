"""Finds and reads profile files: those that come with the appliance, and the user's own."""

from __future__ import annotations

import difflib
from pathlib import Path

from msgspec import Struct

from appliance import paths
from appliance.errors import NotFoundError, UsageError
from appliance.profiles.schema import Profile, parse


class Stored(Struct, frozen=True):
    """A profile and the file it was read from. own: the user's, not a shipped one."""

    profile: Profile
    path: str
    own: bool


def load(shipped: Path | None = None, own: Path | None = None) -> dict[str, Stored]:
    """Every profile by name. The user's own replaces a shipped one of the same name.

    UsageError names the file that cannot be read.
    """
    found: dict[str, Stored] = {}
    for folder, is_own in (
        (shipped or paths.shipped_profiles(), False),
        (own or paths.user_profiles(), True),
    ):
        for path in sorted(folder.rglob("*.toml")):
            try:
                text = path.read_bytes()
            except OSError as e:
                raise UsageError(
                    f"{path} cannot be read: {e.strerror}.",
                    f"chmod u+r {path}     as its owner",
                    code="APL-USE-012",
                ) from e
            profile = parse(text, str(path))
            found[profile.name] = Stored(profile, str(path), is_own)
    return found


def find(name: str, profiles: dict[str, Stored] | None = None) -> Stored:
    """The profile of that name. NotFoundError lists those there are."""
    known = load() if profiles is None else profiles
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, list(known), 1, 0.4)
    meant = f" Did you mean '{close[0]}'?" if close else ""
    raise NotFoundError(
        f"there is no profile '{name}'.{meant}",
        "appliance profile list     shows them all, and which is for this machine",
        code="APL-NOT-012",
    )
