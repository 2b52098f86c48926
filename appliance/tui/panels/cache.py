"""The cache's page: the page pool, what was found by which beginning, each engine, 15 minutes."""

from __future__ import annotations

from appliance.status import TopSnapshot
from appliance.tui import graphs, tables
from appliance.tui.figures import KV_HIGH
from appliance.tui.styles import above
from appliance.tui.text import Glyphs, Line, compact, percent, plural, said, unmarked, whole

_TALLEST_GRAPH = 10
_PREFIXES_LEAST = 3
_BAR = 20


def cache_panel(top: TopSnapshot, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    lines = [*_pool(top, width, glyphs), said(""), *_found(top, glyphs)]
    engines = _engines(top, glyphs)
    room = height - len(lines) - len(engines) - bool(engines)
    prefixes = _prefixes(top, width, glyphs)
    if prefixes and room > _PREFIXES_LEAST:
        shown = prefixes[: max(_PREFIXES_LEAST, min(len(prefixes), room - 8))]
        lines += [said(""), *shown]
    if engines:
        lines += [said(""), *engines]
    room = height - len(lines) - 2
    if room > 1:
        head = f"KV in use, last {graphs.span(top, 'kv_ratio')}"
        lines += [said(""), said(head, "dim")]
        lines += graphs.graph(top, "kv_ratio", width, min(room, _TALLEST_GRAPH), glyphs, 1.0)
    return lines


def _pool(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[Line]:
    kv = top.kv
    total, used = kv.get("total_tokens"), kv.get("used_tokens")
    cached = kv.get("cached_tokens")
    free = None if total is None else max(0.0, total - (used or 0.0) - (cached or 0.0))
    ratio = kv.get("ratio")
    return [
        (("head", "page pool  "), ("dim", f"{compact(total, glyphs)} tokens")),
        _shares(width, total or 0.0, used or 0.0, cached or 0.0, glyphs),
        (
            ("graph", f"{glyphs.shares[0]} "),
            (above(ratio, *KV_HIGH), f"in use {compact(used, glyphs)} ({percent(ratio, glyphs)})"),
            ("info", f"   {glyphs.shares[1]} "),
            ("", f"kept for reuse {compact(cached, glyphs)}"),
            ("dim", f"   {glyphs.shares[2]} free {compact(free, glyphs)}"),
        ),
    ]


def _shares(width: int, total: float, used: float, cached: float, glyphs: Glyphs) -> Line:
    """One bar of the pool: in use, kept for reuse, free."""
    if not total:
        return said(glyphs.dash, "dim")
    first = min(width, max(round(used / total * width), 1 if used else 0))
    second = min(width - first, max(round(cached / total * width), 1 if cached else 0))
    dense, light, empty = tuple(glyphs.shares)
    return (
        ("graph", dense * first),
        ("info", light * second),
        ("dim", empty * (width - first - second)),
    )


def _found(top: TopSnapshot, glyphs: Glyphs) -> list[Line]:
    grown, prefix, kv = top.cache_60s, top.prefix_cache, top.kv
    put_back = grown.get("preemptions")
    return [
        (
            ("head", "prefix cache  "),
            ("dim", "hit "),
            ("value", percent(prefix.get("hit_ratio_60s"), glyphs)),
            ("dim", " in the last minute, "),
            ("value", percent(prefix.get("hit_ratio_total"), glyphs)),
            ("dim", " in all"),
        ),
        said(
            f"last minute: {compact(grown.get('hit_tokens'), glyphs)} of "
            f"{compact(grown.get('query_tokens'), glyphs)} prompt tokens found, "
            f"{compact(grown.get('evicted_tokens'), glyphs)} evicted"
        ),
        said(
            f"put back while running: {compact(put_back, glyphs)} in the last minute, "
            f"{compact(kv.get('preemptions_total'), glyphs)} in all",
            "warn" if put_back else "",
        ),
    ]


def _prefixes(top: TopSnapshot, width: int, glyphs: Glyphs) -> list[Line]:
    """The beginnings that saved most; only those of one engine have names of their own."""
    if not top.prefixes:
        return []
    several = len({row.replica for row in top.prefixes}) > 1
    most = max(row.saved for row in top.prefixes) or 1
    names = ["shared beginning", "tokens", "own", "hits", "rows now", "saved"]
    wide = width >= 60 + _BAR
    rows = []
    for row in top.prefixes:
        name = f"{row.replica}/#{row.number}" if several else f"#{row.number}"
        cells = [
            ("", name),
            ("", compact(row.tokens, glyphs)),
            ("dim", compact(row.own, glyphs)),
            ("", compact(row.hits, glyphs)),
            ("good" if row.rows else "dim", unmarked(row.rows, glyphs)),
            ("value", compact(row.saved, glyphs)),
        ]
        if wide:
            cells.append(("graph", graphs.gauge(row.saved / most, _BAR, glyphs)))
        rows.append(cells)
    head = [*names, " " * _BAR] if wide else names
    return tables.table(head, rows, glyphs, left=frozenset({0, 6}))


def _engines(top: TopSnapshot, glyphs: Glyphs) -> list[Line]:
    head = ("engine", "starts", "running", "waiting", "used", "kept", "total", "steps")
    rows = []
    for engine in top.engines:
        style = "" if engine.get("connected", 1.0) else "warn"
        cells = (
            unmarked(engine.get("replica", 0), glyphs),
            unmarked(engine.get("generation"), glyphs),
            whole(engine.get("running"), glyphs),
            whole(engine.get("waiting"), glyphs),
            compact(engine.get("used_tokens"), glyphs),
            compact(engine.get("cached_tokens"), glyphs),
            compact(engine.get("total_tokens"), glyphs),
            compact(engine.get("steps"), glyphs),
        )
        rows.append([(style, cell) for cell in cells])
    away = sum(not engine.get("connected", 1.0) for engine in top.engines)
    lines = tables.table(head, rows, glyphs)
    if away:
        lines.append(said(f"{plural(away, 'engine')} away: requests wait and go on", "warn"))
    return lines
