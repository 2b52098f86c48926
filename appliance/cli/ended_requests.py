"""Requests that have ended, as the frontends of a run wrote them down: found, shown, replayed."""

from __future__ import annotations

import glob
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance import address, paths
from appliance.errors import NotFoundError, UsageError
from appliance.log import rotated

REDACTED = "[redacted]"
_PREFIX = re.compile(r"^(chatcmpl-|cmpl-|msg_)")
"""What the routes put before a request's id in their answers."""
_TIMES = (
    ("queued", "queue_s"), ("first token", "ttft_s"), ("a token", "itl_s"), ("all", "total_s"),
)  # fmt: skip


def files(name: str) -> list[Path]:
    """The request logs of a run, those of each frontend oldest first."""
    first = paths.request_log(name, 0)
    pattern = f"{glob.escape(name)}.requests-*.jsonl"
    return [old for path in sorted(first.parent.glob(pattern)) for old in reversed(rotated(path))]


def find(name: str, id: str) -> list[dict[str, Any]]:
    """The lines of a request, by the id that its answer carried; the oldest first."""
    wanted = {id, _PREFIX.sub("", id)}
    marks = [f'"id":{json.dumps(one)}'.encode() for one in wanted]
    found = [
        row
        for path in files(name)
        for line in _lines(path)
        if any(mark in line for mark in marks) and (row := _row(line)).get("id") in wanted
    ]
    return sorted(found, key=lambda row: str(row.get("at")))


def replayable(name: str, id: str) -> dict[str, Any]:
    """The newest line of a request that holds its body. NotFoundError or UsageError says why there
    is none."""
    found = find(name, id)
    if not found:
        raise NotFoundError(
            f"no request '{id[:128]}' that has ended is in the request log of '{name}'.",
            "It is still running, or older than what is kept, or the log was off.\n"
            "appliance up --request-log content     keeps requests with their bodies",
            code="APL-NOT-025",
        )
    row = found[-1]
    if "request" not in row:
        raise UsageError(
            f"the body of '{row['id']}' was not kept: the request log was without content.",
            "appliance up --request-log content     keeps prompts and answers from then on",
            code="APL-USE-040",
        )
    if row["request"] is None:
        size = row.get("request_bytes")
        why = f"{size:,} bytes are longer than a line holds" if size else "it was never read"
        raise UsageError(f"the body of '{row['id']}' was not kept: {why}.", code="APL-USE-040")
    return row


def curl_of(row: dict[str, Any], url: str) -> str:
    """A command for a shell; a key is read from APPLIANCE_API_KEY."""
    body = json.dumps(row["request"], ensure_ascii=False, separators=(",", ":"))
    live = " -N" if row.get("stream") else ""
    words = [f"curl -sS{live} {address.curl(url, row['route'])}"]
    words.append("-H 'content-type: application/json'")
    if row.get("key"):
        words.append('-H "authorization: Bearer $APPLIANCE_API_KEY"')
    words.append(f"--data-binary {shlex.quote(body)}")
    return " \\\n  ".join(words)


def text_of(row: dict[str, Any]) -> str:
    """A few lines for people."""
    ended = ", ".join(dict.fromkeys(row["finish"])) or row["error"] or "no answer"
    lines = [
        f"request  {row['id']}   {row['method']} {row['route']} ({row['dialect']})   "
        f"{row['status']} {ended}",
        f"  at     {row['at']}   model {row['model']}   by {row['key'] or row['agent'] or '–'}",
    ]
    if row["prompt_tokens"] is not None:
        lines.append(
            f"  tokens {row['prompt_tokens']:,} prompt ({row['cached_tokens']:,} cached) + "
            f"{row['output_tokens']:,} output"
        )
    told = [
        f"{word} {row[field] * 1e3:,.1f} ms" for word, field in _TIMES if row[field] is not None
    ]
    lines.append("  time   " + ", ".join(told))
    if row["error"]:
        lines.append(f"  error  {row['error']}")
    return "\n".join(lines)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError:
        return


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
