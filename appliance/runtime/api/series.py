"""Every metric a frontend exports, with the names vLLM's boards know: one table.

A frontend counts what it saw itself; what belongs to an engine is read from the newest StepStats
that any frontend has, so that it is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.metrics import Counter, Dump, Gauge, Histogram, Registry, merge, render
from appliance.status import EngineState

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 60.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
E2E_BUCKETS = (
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
    240.0, 480.0, 600.0,
)  # fmt: skip
QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.05, *E2E_BUCKETS)
TOKEN_BUCKETS = (
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0,
    50000.0, 100000.0, 200000.0,
)  # fmt: skip
STEP_BUCKETS = tuple(float(1 << i) for i in range(15))

MODEL = ("model_name",)
OUTCOMES = ("2xx", "4xx", "5xx", "cancelled")
FINISHES = ("stop", "length", "abort", "error")

ALIASES = {
    "vllm:num_requests_running": "appliance_requests_running",
    "vllm:num_requests_waiting": "appliance_requests_waiting",
    "vllm:kv_cache_usage_perc": "appliance_kv_cache_usage_ratio",
    "vllm:prefix_cache_queries_total": "appliance_prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total": "appliance_prefix_cache_hits_total",
    "vllm:num_preemptions_total": "appliance_preemptions_total",
    "vllm:prompt_tokens_total": "appliance_prompt_tokens_total",
    "vllm:generation_tokens_total": "appliance_generation_tokens_total",
    "vllm:request_success_total": "appliance_request_success_total",
    "vllm:time_to_first_token_seconds": "appliance_time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds": "appliance_inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds": "appliance_request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds": "appliance_e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds": "appliance_request_queue_time_seconds",
    "vllm:request_prefill_time_seconds": "appliance_request_prefill_time_seconds",
    "vllm:request_decode_time_seconds": "appliance_request_decode_time_seconds",
    "vllm:request_prompt_tokens": "appliance_request_prompt_tokens",
    "vllm:request_generation_tokens": "appliance_request_generation_tokens",
    "vllm:iteration_tokens_total": "appliance_iteration_tokens",
}

ENGINE_SERIES: tuple[tuple[str, str, str, str], ...] = (
    ("appliance_requests_running", "gauge", "running", "Requests that hold pages"),
    ("appliance_requests_waiting", "gauge", "waiting", "Requests queued in an engine"),
    ("appliance_kv_used_tokens", "gauge", "used_tokens", "Tokens of the page pool in use"),
    ("appliance_kv_cached_tokens", "gauge", "cached_tokens", "Tokens the prefix cache may give up"),
    ("appliance_kv_total_tokens", "gauge", "total_tokens", "Tokens the page pool holds"),
    ("appliance_prefix_cache_queries_total", "counter", "cache_query_tokens", "Tokens looked up"),
    ("appliance_prefix_cache_hits_total", "counter", "cache_hit_tokens", "Prompt tokens found"),
    ("appliance_preemptions_total", "counter", "retractions", "Running requests put back"),
    ("appliance_evicted_tokens_total", "counter", "evicted_tokens", "Tokens evicted from cache"),
    ("appliance_engine_steps_total", "counter", "steps", "Forward passes"),
    ("appliance_engine_schedule_seconds_total", "counter", "schedule_s", "Host: choosing steps"),
    ("appliance_engine_inputs_seconds_total", "counter", "inputs_s", "Host: inputs, within launch"),
    ("appliance_engine_launch_seconds_total", "counter", "launch_s", "Host: queueing steps"),
    ("appliance_engine_wait_seconds_total", "counter", "wait_s", "Host: waiting for devices"),
    ("appliance_engine_settle_seconds_total", "counter", "settle_s", "Host: results to deltas"),
)
"""name, kind, field of StepStats, help; summed over replicas."""


class Series:
    """The metrics of one frontend. Every method takes what was seen and knows the names."""

    def __init__(self, model: str) -> None:
        self.model = model.replace("|", "_")
        self.registry = r = Registry()
        m = MODEL

        def seconds(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return r.histogram(f"appliance_{name}_seconds", help, buckets, m)

        def counter(name: str, help: str, labels: tuple[str, ...] = m) -> Counter:
            return r.counter(f"appliance_{name}_total", help, labels)

        self.requests = counter("requests", "HTTP requests by outcome", (*m, "status"))
        self.finished = counter(
            "request_success", "Sequences ended, by reason", (*m, "finished_reason")
        )
        self.cut = counter("context_cut", "Sequences that ended where the context does")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of answered requests")
        self.cached_tokens = counter("cached_prompt_tokens", "Prompt tokens from the prefix cache")
        self.generated = counter("generation_tokens", "Tokens generated")
        self.replays = counter("replayed_requests", "Requests sent again after an engine's death")
        self.errors = counter("request_errors", "HTTP requests that got an error", (*m, "code"))
        self.log_dropped = counter(
            "request_log_dropped", "Lines of the request log that were not written"
        )
        self.live: Gauge = r.gauge("appliance_live_requests", "Sequences held", m)
        self.ttft = seconds("time_to_first_token", "Arrival to first token", TTFT_BUCKETS)
        self.itl = seconds("inter_token_latency", "Between tokens of a request", ITL_BUCKETS)
        self.tpot = seconds(
            "request_time_per_output_token", "Mean time of a token after the first", ITL_BUCKETS
        )
        self.e2e = seconds("e2e_request_latency", "Arrival to last token", E2E_BUCKETS)
        self.queue = seconds("request_queue_time", "Arrival to admission", QUEUE_BUCKETS)
        self.prefill = seconds("request_prefill_time", "Admission to first token", QUEUE_BUCKETS)
        self.decode = seconds("request_decode_time", "First to last token", E2E_BUCKETS)
        self.prompt_length: Histogram = r.histogram(
            "appliance_request_prompt_tokens", "Prompt length", TOKEN_BUCKETS, m
        )
        self.output_length: Histogram = r.histogram(
            "appliance_request_generation_tokens", "Output length", TOKEN_BUCKETS, m
        )
        self.step_tokens: Histogram = r.histogram(
            "appliance_iteration_tokens", "Tokens computed by a forward pass", STEP_BUCKETS, m
        )
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """A counter that appears only with its first event hides that event from rate()."""
        for status in OUTCOMES:
            self.requests.add(0.0, self.model, status)
        for reason in FINISHES:
            self.finished.add(0.0, self.model, reason)
        for metric in (
            self.prompt_tokens, self.cached_tokens, self.generated, self.replays, self.cut,
            self.log_dropped,
        ):  # fmt: skip
            metric.add(0.0, self.model)
        self.live.set(0.0, self.model)
        for histogram in (
            self.ttft, self.itl, self.tpot, self.e2e, self.queue, self.prefill, self.decode,
            self.prompt_length, self.output_length, self.step_tokens,
        ):  # fmt: skip
            histogram.observe(0.0, self.model, count=0)


def newest(states: Iterable[EngineState]) -> list[EngineState]:
    """Of each replica the state that was taken last."""
    best: dict[int, EngineState] = {}
    for state in states:
        old = best.get(state.replica)
        if old is None or _age_key(state) > _age_key(old):
            best[state.replica] = state
    return list(best.values())


def _age_key(state: EngineState) -> tuple[int, float]:
    return state.generation, state.stats.get("time", 0.0)


def engine_dump(states: Iterable[EngineState], model: str) -> Dump:
    """The engines' own series, as a dump. states: as `newest` gives them."""
    registry = Registry()
    model = model.replace("|", "_")
    known = list(states)
    totals: dict[str, float] = {}
    for name, kind, field, help in ENGINE_SERIES:
        total = totals[field] = sum(s.stats.get(field, 0.0) for s in known)
        if kind == "gauge":
            registry.gauge(name, help, MODEL).set(total, model)
        else:
            registry.counter(name, help, MODEL).add(total, model)
    ratio = registry.gauge(
        "appliance_kv_cache_usage_ratio", "Share of the page pool in use, 0 to 1", MODEL
    )
    ratio.set(totals["used_tokens"] / max(1.0, totals["total_tokens"]), model)
    up = registry.gauge("appliance_engines_connected", "Engines this frontend reaches", MODEL)
    up.set(float(sum(s.connected for s in known)), model)
    return registry.dump()


def exposition(dumps: Iterable[Dump], states: Iterable[EngineState], model: str) -> str:
    """Prometheus text of all frontends' dumps and the engines behind them."""
    return render({**merge(dumps), **engine_dump(states, model)}, ALIASES)
