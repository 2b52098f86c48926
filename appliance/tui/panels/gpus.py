"""The GPUs' page: each over time, power, tokens per joule, who else holds its memory."""

from __future__ import annotations

from typing import Any

from appliance.status import TopSnapshot
from appliance.tui import graphs, tables
from appliance.tui.styles import above
from appliance.tui.text import (
    Glyphs,
    Line,
    fit,
    fit_line,
    inert,
    memory,
    per_joule,
    percent,
    said,
    unmarked,
    whole,
)

_TWO_GRAPHS_FROM = 90
_TWO_ACROSS_FROM = 90
_ALONE_MOST = 4
"""GPUs that stand one above the other even where there is room for two."""
_TALLEST = 18
_NAMED_FROM = 5
"""Height of a block from which its two graphs say what they show."""


def gpu_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    if not top.gpus:
        return _cpu(top, width, height, glyphs)
    power = top.power
    lines: list[Line] = [
        (
            ("value", f"{whole(power.get('watts'), glyphs)} W"),
            ("dim", " in all   "),
            ("value", per_joule(power.get("tokens_per_joule"), glyphs)),
            ("dim", " tokens/J in the last minute   "),
            ("value", _kilowatt_hours(power.get("energy_j"), glyphs)),
            ("dim", " since the start"),
        )
    ]
    across = 2 if len(top.gpus) > _ALONE_MOST and width >= _TWO_ACROSS_FROM else 1
    rows = -(-len(top.gpus) // across)
    tall = max(1, min(_TALLEST, (height - 1) // rows))
    wide = (width - 2 * (across - 1)) // across
    for start in range(0, len(top.gpus), across):
        blocks = [_block(top, gpu, wide, tall, glyphs) for gpu in top.gpus[start : start + across]]
        for at in range(max(map(len, blocks))):
            line: Line = ()
            for block in blocks:
                line += ((("", "  "),) if line else ()) + (
                    fit_line(block[at] if at < len(block) else (), wide, glyphs)
                )
            lines.append(line)
    return lines


def _block(
    top: TopSnapshot, gpu: dict[str, Any], width: int, height: int, glyphs: Glyphs
) -> list[Line]:
    """A head, what troubles it, and its graphs."""
    limit = gpu.get("power_limit_w")
    head: Line = (
        ("head", f"GPU {inert(gpu.get('index', '?'), glyphs)}"),
        ("value", f"  {percent(gpu.get('util'), glyphs)}"),
        ("", f"  {memory(gpu, glyphs)} GiB"),
        ("", f"  {whole(gpu.get('power_w'), glyphs)}/{whole(limit, glyphs)} W"),
        (
            above(gpu.get("temp_c"), *tables.HOT_C, ""),
            f"  {whole(gpu.get('temp_c'), glyphs)} {glyphs.degree}",
        ),
        ("dim", f"  {unmarked(gpu.get('sm_mhz'), glyphs)} MHz"),
        ("dim", f"  {inert(gpu.get('name', ''), glyphs)}"),
    )
    trouble = _trouble(gpu, glyphs)
    lines: list[Line] = [head]
    if trouble and height > 2:
        lines.append(said(f"  {trouble}", "warn"))
    elif trouble:
        lines = [(*head[:3], ("warn", f"  {trouble}"))]
    index, room = gpu.get("index"), height - len(lines) - (height > 4)
    if room < 1:
        return lines
    both = width >= _TWO_GRAPHS_FROM and bool(top.history.get(f"gpu{index}_power_w"))
    wide = (width - 3) // 2 if both else width
    if both and height >= _NAMED_FROM:
        room -= 1
        back = graphs.span(top, f"gpu{index}_util")
        of = "" if limit is None else f" of {whole(limit, glyphs)} W"
        lines.append((("dim", fit(f"use, last {back}", wide + 3, glyphs)), ("dim", f"power{of}")))
    use = graphs.graph(top, f"gpu{index}_util", wide, room, glyphs, 1.0)
    if not both:
        return [*lines, *use]
    watts = graphs.graph(top, f"gpu{index}_power_w", wide, room, glyphs, limit or 0.0, "power")
    return [*lines, *((*left, ("", "   "), *right) for left, right in zip(use, watts, strict=True))]


def _trouble(gpu: dict[str, Any], glyphs: Glyphs) -> str:
    found = []
    reasons = ",".join(inert(reason, glyphs) for reason in gpu.get("throttle") or ())
    if reasons:
        found.append(f"slowed by {reasons}")
    if gpu.get("ecc_uncorrected"):
        found.append(f"{gpu['ecc_uncorrected']} memory errors")
    found += [
        f"pid {process.get('pid')} '{inert(process.get('name', ''), glyphs)}' holds "
        f"{(process.get('memory_bytes') or 0) / 2**30:.1f} GiB"
        for process in gpu.get("processes") or ()
        if process.get("ours") is False
    ]
    return "; ".join(found)


def _cpu(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    lines = tables.gpu_lines(top, width, glyphs)
    room = max(0, height - len(lines) - 2)
    if room and any(top.history.get("cpu_util", [])):
        head = f"CPU use, last {graphs.span(top, 'cpu_util')}"
        lines += [said(""), said(head, "dim")]
        lines += graphs.graph(top, "cpu_util", width, min(room, _TALLEST), glyphs, 1.0)
    return lines


def _kilowatt_hours(joules: float | None, glyphs: Glyphs) -> str:
    return glyphs.dash if joules is None else f"{joules / 3.6e6:.2f} kWh"
