"""Counting, merging across processes, quantiles, and the text that Prometheus reads."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from appliance.metrics import Dump, Registry, merge, quantile, render, subtract

BUCKETS = (0.1, 1.0, 10.0)


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one_process(*observed: float) -> Dump:
    registry = Registry()
    counter = registry.counter("seen_total", "Seen", ("kind",))
    gauge = registry.gauge("live", "Live")
    histogram = registry.histogram("wait_seconds", "Waited", BUCKETS)
    gauge.set(len(observed))
    for value in observed:
        counter.add(1, "even" if value % 2 == 0 else "odd")
        histogram.observe(value)
    return registry.dump()


def test_text_is_what_prometheus_reads() -> None:
    samples = parsed(render(one_process(0.05, 0.1, 2.0, 50.0)))
    assert samples[("seen_total", (("kind", "even"),))] == 2
    assert samples[("live", ())] == 4
    buckets = {le: samples[("wait_seconds_bucket", (("le", le),))] for le in ("0.1", "1", "10")}
    assert buckets == {"0.1": 2, "1": 2, "10": 3}, "a bound belongs to its bucket; counts add up"
    assert samples[("wait_seconds_bucket", (("le", "+Inf"),))] == 4
    assert samples[("wait_seconds_count", ())] == 4
    assert samples[("wait_seconds_sum", ())] == pytest.approx(52.15)


def test_alias_shows_a_metric_under_both_names() -> None:
    samples = parsed(render(one_process(1.0), {"other_wait": "wait_seconds", "none": "missing"}))
    assert samples[("other_wait_count", ())] == samples[("wait_seconds_count", ())] == 1
    assert not any(name.startswith("none") for name, _ in samples)


@given(st.text())
def test_any_label_value_comes_back(value: str) -> None:
    value = value.replace("|", "_")
    registry = Registry()
    registry.counter("seen_total", "Seen", ("name",)).add(1, value)
    ((_, labels),) = parsed(render(registry.dump()))
    assert labels == (("name", value),)


def test_merge_sums_and_keeps_its_inputs() -> None:
    first, second = one_process(0.5, 2.0), one_process(4.0)
    before = msgspec.json.encode([first, second])
    both = parsed(render(merge([first, second])))
    assert both == parsed(render(one_process(0.5, 2.0, 4.0)))
    assert msgspec.json.encode([first, second]) == before


def test_merge_of_what_crossed_a_file() -> None:
    dump = one_process(0.5, 3.0)
    assert merge([msgspec.json.decode(msgspec.json.encode(dump))]) == merge([dump])


def test_merge_of_processes_that_know_different_metrics() -> None:
    registry = Registry()
    registry.gauge("only_here", "Rare").set(2.5)
    samples = parsed(render(merge([one_process(1.0), registry.dump()])))
    assert samples[("only_here", ())] == 2.5 and samples[("live", ())] == 1
    assert merge([]) == {}


def test_dump_does_not_move_with_the_registry() -> None:
    registry = Registry()
    histogram = registry.histogram("wait_seconds", "Waited", BUCKETS)
    histogram.observe(0.5)
    dump = registry.dump()
    histogram.observe(0.5)
    assert sum(dump["wait_seconds"]["series"][""][:-1]) == 1


def test_observed_many_at_once() -> None:
    registry = Registry()
    histogram = registry.histogram("step_tokens", "Tokens", BUCKETS)
    histogram.observe(2.0, count=7)
    assert histogram.series[""] == [0, 0, 7, 0, 14]


def test_time_between_two_dumps_survives_a_restart() -> None:
    old, new = [1.0, 2.0, 0.0, 0.0, 3.0], [2.0, 2.0, 1.0, 0.0, 8.0]
    assert subtract(new, old) == [1, 0, 1, 0, 5]
    assert subtract(new, None) == new
    assert subtract([0.0, 1.0, 0.0, 0.0, 0.5], old) == [0, 1, 0, 0, 0.5]


@given(st.lists(st.floats(0.0, 9.9), min_size=1), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Registry().histogram("h", "H", BUCKETS)
    for value in values:
        histogram.observe(value)
    found = quantile(histogram.series[""], BUCKETS, q)
    assert found is not None
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    upper = next(b for b in BUCKETS if true <= b)
    lower = max((b for b in (0.0, *BUCKETS) if b < upper), default=0.0)
    assert lower <= found <= upper


def test_quantile_of_nothing_and_of_what_lies_beyond() -> None:
    assert quantile([0, 0, 0, 0, 0], BUCKETS, 0.5) is None
    assert quantile([0, 0, 0, 3, 99], BUCKETS, 0.5) == 10.0
    assert quantile([10, 0, 0, 0, 1], BUCKETS, 0.5) == pytest.approx(0.05)
