"""What the second screens show, as lines of (style, text): GPUs, latency, cache, config, a request.

Pure functions of a snapshot, a width and a height in cells. No textual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from appliance.status import RequestRow, TopSnapshot
from appliance.tui import figures
from appliance.tui.figures import Glyphs, fit, inert

Line = tuple[str, str]

_LATENCY_BLOCKS = {
    "ttft_s": "time to first token",
    "itl_s": "between tokens",
    "e2e_s": "whole request",
    "queue_s": "wait in the queue",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
_BLOCK_WIDTH = 44


def graph(
    top: TopSnapshot, metric: str, width: int, height: int, glyphs: Glyphs, full: float = 0.0
) -> list[Line]:
    """Bars of one metric over all the 15 minutes, without a head."""
    values = top.history.get(metric, [])
    shown, _ = figures.buckets(values, width, shortest=900)
    return [("green", line) for line in figures.bars(shown, width, height, glyphs, full)]


def gpu_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """Each GPU with its figures, its use over time, and who else holds its memory."""
    if not top.gpus:
        lines: list[Line] = [("bold", line) for line in figures.gpu_lines(top, glyphs)[:1]]
        lines += [("", line) for line in figures.gpu_lines(top, glyphs)[1:]]
        room = max(0, height - len(lines) - 1)
        if room and any(top.history.get("cpu_util", [])):
            lines.append(("dim", f"CPU use, last {_span(top, 'cpu_util')}"))
            lines += graph(top, "cpu_util", width, min(room, 8), glyphs, 1.0)
        return lines
    power = top.power
    head = (
        f"{figures.whole(power.get('watts'), glyphs)} W in all, "
        f"{figures.per_joule(power.get('tokens_per_joule'), glyphs)} tokens/J in the last minute, "
        f"{_kilowatt_hours(power.get('energy_j'), glyphs)} since the start"
    )
    each = max(2, (height - 1) // len(top.gpus))
    lines = [("", head)]
    for gpu in top.gpus:
        lines += _gpu_block(top, gpu, width, each, glyphs)
    return lines


def _gpu_block(
    top: TopSnapshot, gpu: dict[str, Any], width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    util, ecc = gpu.get("util"), gpu.get("ecc_uncorrected")
    parts = [
        f"GPU {inert(gpu.get('index', '?'), glyphs)}",
        figures.percent(util, glyphs),
        f"{figures.memory(gpu, glyphs)} GiB",
        f"{figures.whole(gpu.get('power_w'), glyphs)}/"
        f"{figures.whole(gpu.get('power_limit_w'), glyphs)} W",
        f"{figures.whole(gpu.get('temp_c'), glyphs)} C",
        f"{figures.plain(gpu.get('sm_mhz'), glyphs)} MHz",
        inert(gpu.get("name", ""), glyphs),
    ]
    reasons = ",".join(inert(reason, glyphs) for reason in gpu.get("throttle") or ())
    lines: list[Line] = [("bold", "  ".join(parts))]
    troubles = []
    if reasons:
        troubles.append(f"slowed by {reasons}")
    if ecc:
        troubles.append(f"{ecc} memory errors")
    troubles += [
        f"pid {process.get('pid')} '{inert(process.get('name', ''), glyphs)}' holds "
        f"{(process.get('memory_bytes') or 0) / 2**30:.1f} GiB"
        for process in gpu.get("processes") or ()
        if process.get("ours") is False
    ]
    if troubles and height > 2:
        lines.append(("yellow", "  " + "; ".join(troubles)))
    room = min(6, height - len(lines))
    lines += graph(top, f"gpu{gpu.get('index')}_util", width, room, glyphs, 1.0)
    return lines


def latency_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """A block for each time and length of the last minute, side by side where there is room."""
    across = max(1, min(3, width // _BLOCK_WIDTH))
    names = list(_LATENCY_BLOCKS)
    rows = math.ceil(len(names) / across)
    tall = max(1, height // rows)
    wide = width // across
    lines: list[Line] = []
    for row in range(rows):
        blocks = [
            _distribution(top, name, wide - 2, tall - (tall > 3), glyphs)
            for name in names[row * across : (row + 1) * across]
        ]
        for at in range(tall):
            cells = [fit(b[at] if at < len(b) else "", wide, glyphs) for b in blocks]
            lines.append(("bold" if at == 0 else "", "".join(cells)))
    return lines


def _distribution(
    top: TopSnapshot, name: str, width: int, height: int, glyphs: Glyphs
) -> list[str]:
    """A head with the quantiles, then a bar for each bucket that has something."""
    seconds = name.endswith("_s")
    spread = top.latency_60s.get(name, {})
    head = _LATENCY_BLOCKS[name]
    if seconds:
        values = " / ".join(
            figures.milliseconds(spread.get(q), glyphs) for q in ("p50", "p90", "p99")
        )
        head += f"  {values} ms"
    found = top.distributions_60s.get(name, {})
    counts, bounds = found.get("counts", []), found.get("bounds", [])
    total = sum(counts)
    if not total:
        return [head, "  nothing in the last minute"][:height]
    if not seconds:
        head += f"  {figures.compact(total, glyphs)} requests"
    return [head, *_bucket_bars(counts, bounds, seconds, width, height - 1, glyphs)]


def _bucket_bars(
    counts: Sequence[float],
    bounds: Sequence[float],
    seconds: bool,
    width: int,
    height: int,
    glyphs: Glyphs,
) -> list[str]:
    """The buckets from the first that has something to the last, joined until they fit."""
    if height < 1:
        return []
    used = [i for i, count in enumerate(counts) if count]
    first, last = used[0], used[-1]
    size = math.ceil((last - first + 1) / height)
    lines, largest = [], 0.0
    groups = []
    for start in range(first, last + 1, size):
        end = min(start + size, last + 1)
        groups.append((end - 1, sum(counts[start:end])))
        largest = max(largest, groups[-1][1])
    room = max(1, width - 19)
    full = glyphs.levels[-1]
    for end, count in groups:
        if end < len(bounds):
            bound = (
                f"{figures.milliseconds(bounds[end])} ms"
                if seconds
                else (figures.compact(bounds[end]))
            )
            label = f"<{bound}"
        else:
            label = "more"
        bar = full * max(1 if count else 0, round(count / largest * room))
        lines.append(f"{fit(label, 11, glyphs, right=True)} {bar} {figures.compact(count)}")
    return lines


def cache_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The page pool, the prefix cache, what was put back, each engine, and 15 minutes of it."""
    kv, grown, prefix = top.kv, top.cache_60s, top.prefix_cache
    total = kv.get("total_tokens") or 0.0
    used, cached = kv.get("used_tokens", 0.0), kv.get("cached_tokens", 0.0)
    free = max(0.0, total - used - cached)
    c = figures.compact
    lines: list[Line] = [
        ("bold", f"page pool  {c(total, glyphs)} tokens"),
        ("", _shares(width, total, used, cached, glyphs)),
        ("", f"in use {c(used, glyphs)} ({figures.percent(kv.get('ratio'), glyphs)})   "
             f"kept for reuse {c(cached, glyphs)}   free {c(free, glyphs)}"),
        ("", ""),
        ("bold", f"prefix cache  hit {figures.percent(prefix.get('hit_ratio_60s'), glyphs)} in the "
                 f"last minute, {figures.percent(prefix.get('hit_ratio_total'), glyphs)} in all"),
        ("", f"last minute: {c(grown.get('hit_tokens'), glyphs)} of "
             f"{c(grown.get('query_tokens'), glyphs)} prompt tokens found, "
             f"{c(grown.get('evicted_tokens'), glyphs)} evicted"),
        ("yellow" if grown.get("preemptions") else "",
         f"put back while running: {c(grown.get('preemptions'), glyphs)} in the last minute, "
         f"{c(kv.get('preemptions_total'), glyphs)} in all"),
        ("", ""),
    ]  # fmt: skip
    lines += _engine_table(top, glyphs)
    room = height - len(lines) - 2
    if room > 0:
        lines += [("", ""), ("dim", f"KV in use, last {_span(top, 'kv_ratio')}")]
        lines += graph(top, "kv_ratio", width, min(room, 10), glyphs, 1.0)
    return lines


def _shares(width: int, total: float, used: float, cached: float, glyphs: Glyphs) -> str:
    """One bar of the pool: in use, kept for reuse, free."""
    if not total:
        return glyphs.dash
    dense, light, empty = ("#", "=", ".") if glyphs.ascii else ("█", "▒", "·")
    first = round(used / total * width)
    second = min(width - first, round(cached / total * width))
    return dense * first + light * second + empty * (width - first - second)


def _engine_table(top: TopSnapshot, glyphs: Glyphs) -> list[Line]:
    head = "engine  gen  running  waiting   used   kept  total   steps"
    lines: list[Line] = [("dim", head)] if top.engines else []
    for engine in top.engines:
        cells = (
            (f"{engine.get('replica', 0):.0f}", 6),
            (f"{engine.get('generation', 0):.0f}", 5),
            (figures.whole(engine.get("running"), glyphs), 9),
            (figures.whole(engine.get("waiting"), glyphs), 9),
            (figures.compact(engine.get("used_tokens"), glyphs), 7),
            (figures.compact(engine.get("cached_tokens"), glyphs), 7),
            (figures.compact(engine.get("total_tokens"), glyphs), 7),
            (figures.compact(engine.get("steps"), glyphs), 8),
        )
        style = "" if engine.get("connected", 1.0) else "yellow"
        lines.append((style, "".join(fit(cell, w, glyphs, right=True) for cell, w in cells)))
    return lines


def config_panel(top: TopSnapshot, plan: dict[str, Any], width: int, glyphs: Glyphs) -> list[Line]:
    """Every value with where it came from; what is not the profile's or a default stands out."""
    answers = plan.get("answers") or []
    if not answers:
        name = inert(top.profile.get("name", ""), glyphs)
        return [("", f"profile {name}: the run has left no plan to show")]
    field = min(30, max((len(str(a.get("field", ""))) for a in answers), default=0))
    lines: list[Line] = [("dim", f"{fit('field', field, glyphs)}  {fit('value', 22)}  from, why")]
    for answer in answers:
        source = inert(answer.get("source", ""), glyphs)
        changed = source.startswith(("flag", "environment", "file"))
        why = ": ".join(filter(None, (source, inert(answer.get("reason", ""), glyphs))))
        value = inert(answer.get("value"), glyphs)
        name = inert(answer.get("field", ""), glyphs)
        text = f"{fit(name, field, glyphs)}  {fit(value, 22, glyphs)}  {why}"
        lines.append(("bold" if changed else "", text))
    return lines


def request_detail(row: RequestRow, logs: Sequence[str], glyphs: Glyphs) -> list[Line]:
    """All that is known of one request, and the log's last lines that name it."""
    done = row.phase == "done"
    pairs = [
        ("state", f"ended: {inert(row.finish, glyphs)}" if done else row.phase),
        ("client", inert(row.client, glyphs) or glyphs.dash),
        ("prompt", f"{row.prompt_tokens:,} tokens, {row.cached_tokens:,} from the prefix cache"),
        ("output", f"{row.output_tokens:,} of at most {row.max_tokens:,} tokens"),
        ("waited", figures.brief(row.queue_s, glyphs)),
        ("first token", f"after {figures.brief(row.ttft_s, glyphs)}"),
        ("speed", f"{figures.whole(row.tok_s, glyphs)} tok/s"),
        ("took" if done else "age", figures.brief(row.age_s, glyphs)),
    ]
    lines: list[Line] = [("bold", inert(row.id, glyphs)), ("", "")]
    lines += [("", f"{name:<12} {value}") for name, value in pairs]
    named = [line for line in logs if row.id in line][-5:]
    if named:
        lines += [("", ""), *(("dim", inert(line, glyphs)) for line in named)]
    return lines


def _span(top: TopSnapshot, metric: str) -> str:
    return figures.duration(len(top.history.get(metric, [])))


def _kilowatt_hours(joules: float | None, glyphs: Glyphs) -> str:
    return glyphs.dash if joules is None else f"{joules / 3.6e6:.2f} kWh"
