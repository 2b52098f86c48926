"""Room on the disks of a run, asked for by a thread: one that hangs keeps nobody waiting."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

EVERY_S = 1.0


class Disks:
    """folders: whose disks are watched. None is asked before the first call of `free`."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._known: dict[str, int] = {}
        self._asked_at = 0.0
        self._asking: threading.Thread | None = None

    def free(self) -> dict[str, int]:
        """Bytes free by folder as the disks last said, at once; has them asked again."""
        idle = self._asking is None or not self._asking.is_alive()
        if idle and time.monotonic() - self._asked_at >= EVERY_S:
            self._asked_at = time.monotonic()
            self._asking = threading.Thread(target=self._ask, name="disks", daemon=True)
            self._asking.start()
        return self._known

    def _ask(self) -> None:
        self._known = disk_free(*self._folders)


def disk_free(*folders: Path) -> dict[str, int]:
    """Bytes free where each lies, once for a disk; what cannot be asked is left out."""
    disks: dict[int, tuple[Path, int]] = {}
    for folder in folders:
        try:
            disks.setdefault(folder.stat().st_dev, (folder, shutil.disk_usage(folder).free))
        except OSError:
            continue
    return {str(folder): free for folder, free in disks.values()}
