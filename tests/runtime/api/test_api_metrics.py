"""Names and labels are a contract with people's boards: they are written out here."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from served_frontend import Served

from appliance import paths, status
from appliance.runtime.api import series
from appliance.runtime.wire.delta import SharedPrefix, StepStats
from appliance.status import EngineState, FrontendSnapshot

GOLDEN = {
    "appliance_requests_total": ("counter", "model_name,status"),
    "appliance_context_cut_total": ("counter", "model_name"),
    "appliance_request_success_total": ("counter", "finished_reason,model_name"),
    "appliance_prompt_tokens_total": ("counter", "model_name"),
    "appliance_cached_prompt_tokens_total": ("counter", "model_name"),
    "appliance_generation_tokens_total": ("counter", "model_name"),
    "appliance_replayed_requests_total": ("counter", "model_name"),
    "appliance_request_errors_total": ("counter", ""),
    "appliance_request_log_dropped_total": ("counter", "model_name"),
    "appliance_live_requests": ("gauge", "model_name"),
    "appliance_time_to_first_token_seconds": ("histogram", "model_name"),
    "appliance_inter_token_latency_seconds": ("histogram", "model_name"),
    "appliance_request_time_per_output_token_seconds": ("histogram", "model_name"),
    "appliance_e2e_request_latency_seconds": ("histogram", "model_name"),
    "appliance_request_queue_time_seconds": ("histogram", "model_name"),
    "appliance_request_prefill_time_seconds": ("histogram", "model_name"),
    "appliance_request_decode_time_seconds": ("histogram", "model_name"),
    "appliance_request_prompt_tokens": ("histogram", "model_name"),
    "appliance_request_generation_tokens": ("histogram", "model_name"),
    "appliance_iteration_tokens": ("histogram", "model_name"),
    "appliance_requests_running": ("gauge", "model_name"),
    "appliance_requests_waiting": ("gauge", "model_name"),
    "appliance_kv_used_tokens": ("gauge", "model_name"),
    "appliance_kv_cached_tokens": ("gauge", "model_name"),
    "appliance_kv_total_tokens": ("gauge", "model_name"),
    "appliance_kv_cache_usage_ratio": ("gauge", "model_name"),
    "appliance_prefix_cache_queries_total": ("counter", "model_name"),
    "appliance_prefix_cache_hits_total": ("counter", "model_name"),
    "appliance_preemptions_total": ("counter", "model_name"),
    "appliance_evicted_tokens_total": ("counter", "model_name"),
    "appliance_engine_steps_total": ("counter", "model_name"),
    "appliance_engine_schedule_seconds_total": ("counter", "model_name"),
    "appliance_engine_inputs_seconds_total": ("counter", "model_name"),
    "appliance_engine_launch_seconds_total": ("counter", "model_name"),
    "appliance_engine_wait_seconds_total": ("counter", "model_name"),
    "appliance_engine_settle_seconds_total": ("counter", "model_name"),
    "appliance_engines_connected": ("gauge", "model_name"),
    "vllm:num_requests_running": ("gauge", "model_name"),
    "vllm:num_requests_waiting": ("gauge", "model_name"),
    "vllm:kv_cache_usage_perc": ("gauge", "model_name"),
    "vllm:prefix_cache_queries_total": ("counter", "model_name"),
    "vllm:prefix_cache_hits_total": ("counter", "model_name"),
    "vllm:num_preemptions_total": ("counter", "model_name"),
    "vllm:prompt_tokens_total": ("counter", "model_name"),
    "vllm:generation_tokens_total": ("counter", "model_name"),
    "vllm:request_success_total": ("counter", "finished_reason,model_name"),
    "vllm:time_to_first_token_seconds": ("histogram", "model_name"),
    "vllm:inter_token_latency_seconds": ("histogram", "model_name"),
    "vllm:request_time_per_output_token_seconds": ("histogram", "model_name"),
    "vllm:e2e_request_latency_seconds": ("histogram", "model_name"),
    "vllm:request_queue_time_seconds": ("histogram", "model_name"),
    "vllm:request_prefill_time_seconds": ("histogram", "model_name"),
    "vllm:request_decode_time_seconds": ("histogram", "model_name"),
    "vllm:request_prompt_tokens": ("histogram", "model_name"),
    "vllm:request_generation_tokens": ("histogram", "model_name"),
    "vllm:iteration_tokens_total": ("histogram", "model_name"),
}

Table = dict[str, dict[str, float]]


def scrape(served: Served) -> tuple[dict[str, tuple[str, str]], Table]:
    """(name -> kind and labels, sample -> labels -> value)"""
    response = httpx.get(f"{served.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds: dict[str, tuple[str, str]] = {}
    values: Table = {}
    for family in text_string_to_metric_families(response.text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {k for s in family.samples for k in s.labels} - {"le"}
        kinds[name] = (family.type, ",".join(sorted(labels)))
        for sample in family.samples:
            key = ",".join(f"{v}" for k, v in sorted(sample.labels.items()))
            values.setdefault(sample.name, {})[key] = sample.value
    return kinds, values


def test_names_kinds_and_labels_stay(served: Served) -> None:
    kinds, _ = scrape(served)
    assert kinds == GOLDEN


def test_bucket_ranges() -> None:
    assert (series.TTFT_BUCKETS[0], series.TTFT_BUCKETS[-1]) == (0.001, 60.0)
    assert (series.ITL_BUCKETS[0], series.ITL_BUCKETS[-1]) == (0.001, 2.5)
    assert (series.E2E_BUCKETS[0], series.E2E_BUCKETS[-1]) == (0.1, 600.0)


def test_what_a_request_counts(served: Served, engine: FakeEngine) -> None:
    engine.cached = 2
    body = {"prompt": [5, 6, 7], "max_tokens": 10}
    assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    assert httpx.post(f"{served.url}/v1/completions", json={}).status_code == 400
    _, values = scrape(served)
    assert values["appliance_generation_tokens_total"]["org/tiny"] == 10
    assert values["vllm:prompt_tokens_total"]["org/tiny"] == 3
    assert values["appliance_cached_prompt_tokens_total"]["org/tiny"] == 2
    assert values["vllm:request_success_total"]["length,org/tiny"] == 1
    assert values["appliance_requests_total"]["org/tiny,2xx"] == 1
    assert values["appliance_requests_total"]["org/tiny,4xx"] == 1
    assert values["vllm:inter_token_latency_seconds_count"]["org/tiny"] == 9
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        assert values[f"vllm:{name}_seconds_count"]["org/tiny"] == 1, name
    assert values["vllm:request_generation_tokens_sum"]["org/tiny"] == 10


def test_engine_numbers_are_counted_once(served: Served, engine: FakeEngine, run_dir: Path) -> None:
    engine.stats = StepStats(
        time=5.0, steps=7, running=3, used_tokens=50, total_tokens=200, cache_hit_tokens=11
    )
    body = {"prompt": "Hello", "max_tokens": 2}
    assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    _, values = scrape(served)
    assert values["vllm:num_requests_running"]["org/tiny"] == 3
    assert values["vllm:kv_cache_usage_perc"]["org/tiny"] == 0.25


def test_the_other_frontends_numbers_are_added(
    engine: FakeEngine, serve: Callable[..., Served], run_dir: Path
) -> None:
    engine.stats = StepStats(time=5.0, running=3)
    engine.start()
    first, second = (serve(index=i, frontends=2).connected() for i in range(2))
    for served in (first, second, second):
        body = {"prompt": [5, 6, 7], "max_tokens": 4}
        assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    for served in (first, second):
        served.loop.call_soon_threadsafe(served.process.snapshots.publish, 0.0)
        path = paths.frontend_snapshot(run_dir, served.frontend.index)
        served.until(lambda path=path: _generated(path) in (4.0, 8.0))
    for served in (first, second):
        _, values = scrape(served)
        assert values["appliance_generation_tokens_total"]["org/tiny"] == 12
        assert values["appliance_requests_running"]["org/tiny"] == 3


def _generated(path: Path) -> float:
    try:
        snapshot = msgspec.json.decode(path.read_bytes(), type=FrontendSnapshot)
    except FileNotFoundError:
        return -1.0
    value: float = snapshot.metrics["appliance_generation_tokens_total"]["series"]["org/tiny"]
    return value


def test_the_newest_stats_of_a_replica_count() -> None:
    old = EngineState(replica=0, connected=True, generation=1, stats={"time": 9.0, "running": 1.0})
    new = EngineState(replica=0, connected=True, generation=2, stats={"time": 1.0, "running": 2.0})
    other = EngineState(replica=1, connected=True, generation=1, stats={"running": 4.0})
    dump = series.engine_dump(series.newest([new, old, other]), "m")
    assert dump["appliance_requests_running"]["series"]["m"] == 6.0


def test_a_snapshot_shows_live_requests_without_their_text(
    served: Served, engine: FakeEngine, run_dir: Path
) -> None:
    engine.budget = 3
    body = {"prompt": "Hello secret", "max_tokens": 9, "stream": True}
    headers = {"x-request-id": "mine", "user-agent": "bench/1.0 (x)"}
    url = f"{served.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers) as response:
        served.until(lambda: any(len(v.output) == 3 for v in served.frontend._live.values()))
        served.process.snapshots.publish(at_least_every_s=0.0)
        data = paths.frontend_snapshot(run_dir, 0).read_bytes()
        engine.budget = None
        response.read()
    snapshot = msgspec.json.decode(data, type=FrontendSnapshot)
    (row,) = snapshot.requests
    assert (row.id, row.client, row.phase) == ("mine", "bench/1.0", "decode")
    assert (row.output_tokens, row.max_tokens) == (3, 9)
    (client,) = snapshot.clients
    assert (client.client, client.live, client.output_tokens) == ("bench/1.0", 1, 3)
    assert row.queue_s is not None and row.ttft_s is not None and row.tok_s is not None
    assert b"secret" not in data
    assert snapshot.engines[0].connected and snapshot.live == 1


def test_nothing_is_written_while_nothing_changes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(
        "appliance.runtime.api.admin.publish", lambda path, value: written.append(value)
    )
    snapshots = type(served.process.snapshots)(served.frontend, served.run_dir, 1)
    for _ in range(5):
        snapshots.publish(at_least_every_s=1000.0)
    assert len(written) == 1
    snapshots.publish(at_least_every_s=0.0)
    assert len(written) == 2 and status.RunState()


def test_a_prompt_computed_in_parts_says_how_far_it_is(served: Served, engine: FakeEngine) -> None:
    engine.hold.set()
    body = {"prompt": [5, 6, 7], "max_tokens": 2}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{served.url}/v1/completions", json=body, timeout=60)
        served.until(lambda: any(v.in_flight for v in served.frontend._live.values()))
        stats = StepStats(partial_rid=engine.requests[0].rid, partial_tokens=2)
        served.frontend.engines[0].stats = stats
        (row,) = served.frontend.rows()
        engine.hold.clear()
        assert asked.result().status_code == 200
    assert (row.phase, row.prefilled_tokens) == ("prefill", 2)


def test_shared_beginnings_cross_to_the_snapshot(served: Served, engine: FakeEngine) -> None:
    engine.stats = StepStats(shared=(SharedPrefix(7, 2048, 1024, 5, 2),), partial_rid=1 << 60)
    body = {"prompt": "Hello", "max_tokens": 2}
    assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    (state,) = served.frontend.states()
    (prefix,) = state.shared
    assert (prefix.number, prefix.tokens, prefix.saved, prefix.rows) == (7, 2048, 5120, 2)
    assert "partial_rid" not in state.stats


def test_an_answer_that_ends_with_the_context_is_counted(
    served: Served, engine: FakeEngine
) -> None:
    room = served.frontend.context - 3
    for most in (4, room):
        body = {"prompt": [5, 6, 7], "max_tokens": most, "ignore_eos": True}
        assert httpx.post(f"{served.url}/v1/completions", json=body).status_code == 200
    _, values = scrape(served)
    assert values["appliance_context_cut_total"]["org/tiny"] == 1
