"""What we know of the files we fetched: which belong to a snapshot, and which bytes were verified.

One JSON file for each model, under the state folder; the weights stay in the hub's own cache.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance import paths
from appliance.hub.layout import write_atomically
from appliance.hub.source import Listing, RemoteFile, SourceKey

_SCHEMA = "appliance.manifest/1"


def manifest_path(source: SourceKey, name: str) -> Path:
    return paths.state_dir() / "models" / f"{source}--{name.replace('/', '--')}.json"


@dataclass
class Snapshot:
    """One revision in one folder. `files` maps its paths to sizes."""

    revision: str
    commit: str
    complete: bool
    pulled_at: str
    files: dict[str, int]


@dataclass
class Manifest:
    """Read, change, `save`. Only the holder of the model's lock saves."""

    source: SourceKey
    name: str
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    """By folder."""
    verified: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Digest -> (size, mtime in ns) of the bytes that had it."""

    @classmethod
    def read(cls, source: SourceKey, name: str) -> Manifest:
        """What was saved; an empty one when nothing was, or when it cannot be understood."""
        try:
            saved = json.loads(manifest_path(source, name).read_bytes())
            if saved["schema"] != _SCHEMA:
                return cls(source, name)
            snapshots = {k: Snapshot(**v) for k, v in saved["snapshots"].items()}
            verified = {k: (int(v[0]), int(v[1])) for k, v in saved["verified"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return cls(source, name)
        return cls(source, name, snapshots, verified)

    def save(self) -> None:
        path = manifest_path(self.source, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "schema": _SCHEMA,
            "source": self.source,
            "name": self.name,
            "snapshots": {k: vars(v) for k, v in self.snapshots.items()},
            "verified": self.verified,
        }
        write_atomically(path, json.dumps(content, indent=1).encode())

    def start(self, folder: Path, listing: Listing, files: tuple[RemoteFile, ...]) -> None:
        """A pull of these files begins; files of an earlier pull into the folder stay listed."""
        before = self.snapshots.get(str(folder))
        known = before.files if before and before.commit == listing.commit else {}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.snapshots[str(folder)] = Snapshot(
            revision=listing.revision,
            commit=listing.commit,
            complete=False,
            pulled_at=now,
            files=known | {f.path: f.size for f in files},
        )

    def stamp(self, file: RemoteFile, body: Path) -> None:
        """Remembers that these very bytes were verified."""
        if file.hex:
            st = body.stat()
            self.verified[file.hex] = (st.st_size, st.st_mtime_ns)

    def is_stamped(self, file: RemoteFile, body: Path) -> bool:
        if not file.hex:
            return True
        st = body.stat()
        return self.verified.get(file.hex) == (st.st_size, st.st_mtime_ns)


def lacking(folder: Path, snapshot: Snapshot) -> tuple[str, ...]:
    """Paths of a recorded snapshot that are not there with their size."""
    lost = []
    for path, size in snapshot.files.items():
        try:
            if (folder / path).stat().st_size != size:
                lost.append(path)
        except OSError:
            lost.append(path)
    return tuple(lost)
