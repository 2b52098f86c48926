"""What is known of an uploaded file and of a batch, in OpenAI's shapes."""

from __future__ import annotations

import secrets
from typing import Any, Literal

import msgspec
from msgspec import Struct

BATCH_PURPOSE = "batch"
OUTPUT_PURPOSE = "batch_output"
PURPOSES = (BATCH_PURPOSE,)
WINDOW = "24h"
WINDOW_S = 24 * 3600

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip
_UNSHOWN = ("total", "completed", "failed", "output_expires_after_s", "key", "namespace")
ENDED: tuple[Status, ...] = ("failed", "completed", "expired", "cancelled")


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


class FileRecord(Struct, frozen=True, kw_only=True):
    """Times are seconds of the epoch. key: name of the key it was made with; empty without."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    key: str = ""

    def shown(self) -> dict[str, Any]:
        out = msgspec.structs.asdict(self)
        del out["key"]
        return out | {"object": "file", "status": "processed"}


class Fault(Struct, frozen=True):
    """Why an input file is refused. line counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(Struct, frozen=True, kw_only=True):
    """Times are seconds of the epoch. completed and failed count lines that have an answer.

    key: name of the key it was made with, on whose account its lines run; namespace: that key's.
    """

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    completion_window: str = WINDOW
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    errors: tuple[Fault, ...] = ()
    total: int = 0
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_after_s: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    key: str = ""
    namespace: str = ""

    def shown(self) -> dict[str, Any]:
        out: dict[str, Any] = msgspec.structs.asdict(self)
        for name in _UNSHOWN:
            del out[name]
        if self.status not in ENDED:  # they are named before they are written
            out["output_file_id"] = out["error_file_id"] = None
        faults = [msgspec.structs.asdict(fault) for fault in self.errors]
        counts = {"total": self.total, "completed": self.completed, "failed": self.failed}
        return out | {
            "object": "batch",
            "errors": {"object": "list", "data": faults} if faults else None,
            "request_counts": counts,
        }
