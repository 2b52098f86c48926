"""Writes appliance.json, the board for Grafana: `python deploy/grafana/make.py`.

A panel is a title, its queries and their unit; where it lies follows from its place in the list.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BOARD = Path(__file__).with_name("appliance.json")
RUN = 'job=~"$job", instance=~"$instance"'
MODEL = RUN + ', model_name=~"$model"'
RATE = "$__rate_interval"
WIDTH = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Query = tuple[str, str]
"""(PromQL, legend)"""
Panel = dict[str, Any]


def rate(metric: str, labels: str = MODEL) -> str:
    return f"rate({metric}{{{labels}}}[{RATE}])"


def total(metric: str, by: str = "", labels: str = MODEL) -> str:
    return f"sum{f' by ({by})' if by else ''} ({rate(metric, labels)})"


def quantiles(metric: str, *shown: float) -> list[Query]:
    inner = f"sum by (le) ({rate(metric + '_bucket')})"
    return [(f"histogram_quantile({q}, {inner})", f"p{q * 100:g}") for q in shown]


def ratio(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


def figure(title: str, query: str, unit: str, steps: list[tuple[str, float | None]]) -> Panel:
    """One number, coloured by the last step it has reached."""
    return _panel("stat", title, [(query, "")], unit, 4, 4) | {
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        },
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": color, "value": value} for color, value in steps],
                },
            },
            "overrides": [],
        },
    }


def lines(
    title: str, queries: list[Query], unit: str, *, about: str = "", stacked: bool = False
) -> Panel:
    """Series over time."""
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    if stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    return _panel("timeseries", title, queries, unit, 8, 8) | {
        "description": about,
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
    }


def heat(title: str, metric: str, unit: str) -> Panel:
    """A histogram's buckets over time."""
    query = f"sum by (le) (increase({metric}_bucket{{{MODEL}}}[{RATE}]))"
    made = _panel("heatmap", title, [(query, "{{le}}")], unit, 8, 8)
    made["targets"][0]["format"] = "heatmap"
    return made | {
        "options": {
            "calculate": False,
            "yAxis": {"unit": unit},
            "color": {"mode": "scheme", "scheme": "Blues"},
            "cellGap": 1,
        }
    }


def _panel(
    kind: str, title: str, queries: list[Query], unit: str, width: int, height: int
) -> Panel:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for i, (expr, legend) in enumerate(queries)
    ]
    place = {"w": width, "h": height}
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "targets": targets,
        "gridPos": place,
    }


GOOD: list[tuple[str, float | None]] = [("green", None)]


def rows() -> list[tuple[str, list[Panel]]]:
    return [
        ("At a glance", _glance()),
        ("Requests", _requests()),
        ("Latency", _latency()),
        ("Engine and cache", _engine()),
        ("GPUs", _gpus()),
        ("The run", _run()),
    ]


def _glance() -> list[Panel]:
    failed = total("appliance_requests_total", labels=MODEL + ', status="5xx"')
    everything = total("appliance_requests_total")
    first = quantiles("appliance_time_to_first_token_seconds", 0.99)[0][0]
    kv = f"max(appliance_kv_cache_usage_ratio{{{MODEL}}})"
    warm: list[tuple[str, float | None]] = [("green", None), ("orange", 0.8), ("red", 0.9)]
    up = f'sum(appliance_run_state{{{RUN}, state="ready"}})'
    return [
        figure("Ready", up, "short", [("red", None), ("green", 1)]),
        figure("Tokens made", total("appliance_generation_tokens_total"), "short", GOOD),
        figure("Live requests", f"sum(appliance_live_requests{{{MODEL}}})", "short", GOOD),
        figure("First token, p99", first, "s", [("green", None), ("orange", 2), ("red", 10)]),
        figure("KV cache", kv, "percentunit", warm),
        figure(
            "Fail with 5xx",
            ratio(failed, everything),
            "percentunit",
            [("green", None), ("orange", 0.001), ("red", 0.01)],
        ),
    ]


def _requests() -> list[Panel]:
    return [
        lines(
            "Requests by outcome",
            [(total("appliance_requests_total", "status"), "{{status}}")],
            "reqps",
            stacked=True,
        ),
        lines(
            "Errors by code",
            [(total("appliance_request_errors_total", "code"), "{{code}}")],
            "reqps",
            about="`appliance explain` and the request log have more of each.",
        ),
        lines(
            "Why answers end",
            [(total("appliance_request_success_total", "finished_reason"), "{{finished_reason}}")],
            "reqps",
            stacked=True,
        ),
        lines(
            "Tokens a second",
            [
                (total("appliance_generation_tokens_total"), "made"),
                (total("appliance_prompt_tokens_total"), "read"),
                (total("appliance_cached_prompt_tokens_total"), "read from the cache"),
            ],
            "short",
        ),
        heat("Prompt lengths", "appliance_request_prompt_tokens", "short"),
        heat("Answer lengths", "appliance_request_generation_tokens", "short"),
    ]


def _latency() -> list[Panel]:
    shown = (0.5, 0.9, 0.99)
    return [
        lines("First token", quantiles("appliance_time_to_first_token_seconds", *shown), "s"),
        lines("Between tokens", quantiles("appliance_inter_token_latency_seconds", *shown), "s"),
        lines("Whole request", quantiles("appliance_e2e_request_latency_seconds", *shown), "s"),
        lines("In the queue", quantiles("appliance_request_queue_time_seconds", *shown), "s"),
        lines("Prefill", quantiles("appliance_request_prefill_time_seconds", *shown), "s"),
        lines("Decode", quantiles("appliance_request_decode_time_seconds", *shown), "s"),
    ]


def _engine() -> list[Panel]:
    hits = total("appliance_prefix_cache_hits_total")
    looked_up = total("appliance_prefix_cache_queries_total")
    return [
        lines(
            "Running and waiting",
            [
                (f"sum(appliance_requests_running{{{MODEL}}})", "running"),
                (f"sum(appliance_requests_waiting{{{MODEL}}})", "waiting in an engine"),
                (f"sum(appliance_live_requests{{{MODEL}}})", "held by frontends"),
            ],
            "short",
        ),
        lines(
            "KV cache",
            [
                (f"sum(appliance_kv_used_tokens{{{MODEL}}})", "used"),
                (f"sum(appliance_kv_cached_tokens{{{MODEL}}})", "may be given up"),
                (f"sum(appliance_kv_total_tokens{{{MODEL}}})", "all"),
            ],
            "short",
            about="Tokens.",
        ),
        lines("Prefix hits", [(ratio(hits, looked_up), "of the tokens looked up")], "percentunit"),
        lines(
            "Put back and evicted",
            [
                (total("appliance_preemptions_total"), "requests put back"),
                (total("appliance_evicted_tokens_total"), "tokens evicted"),
            ],
            "short",
        ),
        lines("Forward passes", [(total("appliance_engine_steps_total"), "a second")], "short"),
        lines(
            "Host time of an engine",
            [
                (total("appliance_engine_schedule_seconds_total"), "choosing steps"),
                (total("appliance_engine_launch_seconds_total"), "queueing steps"),
                (total("appliance_engine_wait_seconds_total"), "waiting for devices"),
                (total("appliance_engine_settle_seconds_total"), "results to deltas"),
            ],
            "percentunit",
            about="Seconds of each second, summed over engines.",
        ),
    ]


def _gpus() -> list[Panel]:
    def each(metric: str, unit: str, title: str) -> Panel:
        query = f"appliance_gpu_{metric}{{{RUN}}}"
        return lines(title, [(query, "{{instance}} GPU {{gpu}}")], unit)

    joules = f"sum(appliance_gpu_power_watts{{{RUN}}})"
    return [
        each("utilization_ratio", "percentunit", "GPU use"),
        each("memory_used_bytes", "bytes", "GPU memory"),
        each("power_watts", "watt", "GPU power"),
        each("temperature_celsius", "celsius", "GPU temperature"),
        lines(
            "Tokens for a joule",
            [(ratio(total("appliance_generation_tokens_total"), joules), "made")],
            "short",
        ),
        lines(
            "Slowed down",
            [
                (
                    f"appliance_gpu_throttled{{{RUN}}} > 0",
                    "{{instance}} GPU {{gpu}}: {{reason}}",
                )
            ],
            "short",
        ),
    ]


def _run() -> list[Panel]:
    dropped = total("appliance_request_log_dropped_total")
    return [
        lines(
            "State",
            [(f"appliance_run_state{{{RUN}}} == 1", "{{instance}} {{state}}")],
            "short",
        ),
        lines(
            "Engines started again",
            [
                (
                    f"increase(appliance_engine_restarts_total{{{RUN}}}[{RATE}])",
                    "{{instance}}",
                ),
                (
                    f"sum(increase(appliance_replayed_requests_total{{{MODEL}}}[{RATE}]))",
                    "requests sent again",
                ),
            ],
            "short",
        ),
        lines(
            "Alerts of the dashboard",
            [(f"appliance_alerts{{{RUN}}} > 0", "{{instance}} {{code}}")],
            "short",
            about="How many of each stand; `appliance explain CODE` says more of one.",
        ),
        lines("Disk", [(f"appliance_disk_free_bytes{{{RUN}}}", "{{instance}} free")], "bytes"),
        lines("Lines of the request log lost", [(dropped, "a second")], "short"),
    ]


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


def board() -> dict[str, Any]:
    panels: list[Panel] = []
    y = 0
    for title, content in rows():
        panels.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in content:
            place = panel["gridPos"]
            if x + place["w"] > WIDTH:
                y, x = y + height, 0
            place |= {"x": x, "y": y}
            x, height = x + place["w"], place["h"]
            panels.append(panel)
        y += height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        _variable("job", "label_values(appliance_live_requests, job)"),
        _variable("instance", 'label_values(appliance_live_requests{job=~"$job"}, instance)'),
        _variable("model", f"label_values(appliance_live_requests{{{RUN}}}, model_name)"),
    ]
    return {
        "uid": "appliance",
        "title": "appliance",
        "tags": ["appliance", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": panels,
    }


def text() -> str:
    return json.dumps(board(), indent=1) + "\n"


if __name__ == "__main__":
    BOARD.write_text(text())
    sys.stdout.write(f"{BOARD}\n")
