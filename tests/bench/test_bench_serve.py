"""The whole way: command line, sending processes, a server of ours, figures, record."""

import json
import math
import re

import numpy as np
import pytest
from fakeopenai import FakeOpenAI, running

from appliance.bench import files, load, target
from appliance.bench.measure import figures
from appliance.bench.workload import Workload, timed
from appliance.cli.main import run as appliance
from appliance.errors import NetworkError, UsageError

FIELDS = {
    "row", "date", "command", "gpu", "kind", "model", "dataset", "request_rate", "seed",
    "max_concurrency", "completed", "failed", "out_tok_s", "in_tok_s", "req_s", "duration_s",
    *(f"{k}_ms_{s}" for k in ("ttft", "tpot", "itl", "e2e") for s in ("mean", "p50", "p99")),
}  # fmt: skip


@pytest.fixture
def server():
    with running(FakeOpenAI()) as fake:
        yield fake


def workload(requests: int = 12, **more) -> Workload:
    return Workload(dataset="range:4-8,3-6", requests=requests, model="fake", **more)


def test_every_request_is_sent_once_by_all_processes_and_counted(server):
    run = load.run(workload(), server.url, processes=2)
    assert [record.index for record in run.records] == list(range(12))
    assert not any(record.error for record in run.records)
    found = figures(run)
    assert found["completed"] == 12
    assert found["output_tokens"] == sum(body["max_tokens"] for body in server.requests)
    assert found["input_tokens"] == sum(len(body["prompt"]) for body in server.requests)
    for record in run.records:
        assert len(record.times) == 8 * record.output_tokens
        assert run.start <= record.start <= record.last <= run.end


def test_figures_of_several_processes_are_those_of_all_records_together(server):
    run = load.run(workload(30), server.url, processes=3)
    each = [figures(load.Run(run.records[i::3], run.start, run.end, 0.0)) for i in range(3)]
    found = figures(run)
    first = [np.frombuffer(r.times)[0] - r.start for r in run.records]
    for share in (50, 90, 99):
        exact = float(np.percentile(first, share)) * 1000
        assert found[f"ttft_ms_p{share}"] == pytest.approx(exact, rel=1e-12)
    gaps = np.concatenate([np.diff(np.frombuffer(r.times)) for r in run.records])
    assert found["itl_ms_p99"] == pytest.approx(float(np.percentile(gaps, 99)) * 1000, rel=1e-12)
    assert found["output_tokens"] == sum(part["output_tokens"] for part in each)
    assert found["completed"] == 30 and found["peak_concurrency"] <= 30


def test_a_duration_ends_the_sending(server):
    work = timed(workload(1, seed=2), 0.3, bounded=False)
    run = load.run(work, server.url, concurrency=2, processes=2)
    assert 1 <= len(run.records) < work.requests
    assert not any(record.error for record in run.records)
    assert len({record.index for record in run.records}) == len(run.records)
    with pytest.raises(UsageError, match="All requests at once"):
        load.run(work, server.url)


def test_the_native_api_is_measured_the_same(server):
    run = load.run(workload(6, api="native"), server.url, processes=1)
    assert not any(record.error for record in run.records)
    for record in run.records:
        assert len(record.times) == 8 * record.output_tokens == 8 * record.asked_tokens
        assert record.input_tokens >= 4


def test_concurrency_is_a_limit_and_connections_are_kept(server):
    seen = []
    load.run(workload(20), server.url, concurrency=3, processes=2, watch=lambda *n: seen.append(n))
    assert server.most_live <= 3
    assert server.connections <= 3


def test_a_rate_spreads_the_requests(server):
    run = load.run(workload(8, rate=100.0, seed=3), server.url, processes=1)
    starts = [record.start - run.start for record in run.records]
    assert starts == sorted(starts) and starts[-1] > 0.02


def test_failures_are_counted_and_never_hidden(server):
    server.answer = "every-third"
    run = load.run(workload(9), server.url, processes=1)
    failed = [record.error for record in run.records if record.error]
    assert failed == ["HTTP 503: busy"] * 3
    assert figures(run)["completed"] == 6


def test_a_stream_that_is_cut_is_a_failure(server):
    server.answer = "cut"
    run = load.run(workload(2), server.url, processes=1)
    assert all("closed the connection" in record.error for record in run.records)


def test_nobody_listens():
    run = load.run(workload(2), "http://127.0.0.1:9", processes=1)
    assert all(record.error for record in run.records)
    with pytest.raises(NetworkError, match="No server answers"):
        target.served_model("http://127.0.0.1:9")


def test_bad_numbers_are_refused():
    with pytest.raises(UsageError):
        load.run(workload(), "http://127.0.0.1:9", concurrency=-1)


def test_sharegpt_counts_with_the_servers_tokenizer(server, tmp_path):
    talks = [
        {"conversations": [{"value": "q" * n}, {"value": "a" * 5}, {"value": "x"}]}
        for n in (1, 30, 40, 2000)
    ]
    talks.append({"conversations": [{"value": "alone"}]})
    file = tmp_path / "s.json"
    file.write_text(json.dumps(talks))
    got = files.read_sharegpt(file, 2, 0, "ids", server.url, "fake", "")
    assert sorted(len(p.ids) for p in got) == [30, 40]
    assert {p.output_len for p in got} == {5}
    with pytest.raises(UsageError, match="3 were asked for"):
        files.read_sharegpt(file, 3, 0, "ids", server.url, "fake", "")


def serve(server, *more: str) -> int:
    head = ["bench", "serve", "--url", server.url, "--dataset", "fixed:4,3", "--num-prompts", "4"]
    return appliance([*head, "--processes", "1", *more])


def test_the_command_prints_a_table_and_appends_a_line(server, tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    rc = serve(server, "--append", str(file), "--row", "r1", "--label", "gpu=none",
               "--slo", "ttft=10s")  # fmt: skip
    assert rc == 0
    shown = capsys.readouterr().out
    assert "4 completed, 0 failed" in shown and "goodput" in shown
    assert re.search(r"output tokens a second with .* under way; half of the answers began", shown)
    line = json.loads(file.read_text())
    assert set(line) >= FIELDS
    assert (line["row"], line["gpu"], line["model"]) == ("r1", "none", "fake")
    assert line["slo_share"] == 1.0
    assert all(math.isfinite(v) for v in line.values() if isinstance(v, float))


def test_json_is_one_object(server, capsys):
    assert serve(server, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) >= FIELDS


def test_failed_requests_are_told_and_make_rc_1(server, capsys):
    server.answer = "every-third"
    assert serve(server, "--warmup", "0") == 1
    told = capsys.readouterr()
    assert "1 failed" in told.out and "HTTP 503: busy" in told.err


def test_a_server_that_refuses_is_found_out_before_measuring(server, capsys):
    server.answer = "refuse"
    assert serve(server) == 6
    assert "still loading" in capsys.readouterr().err
    assert len(server.requests) == 1


def test_latency_sends_whole_batches(server, capsys):
    rc = appliance(["bench", "latency", "--url", server.url, "--batch-size", "3", "--output-len",
                    "4", "--repeat", "2", "--json"])  # fmt: skip
    line = json.loads(capsys.readouterr().out)
    assert rc == 0 and line["completed"] == 6 and line["prefill_ms"] > 0
    assert len(server.requests) == 1 + 3 * 3


def test_a_sweep_records_every_point(server, tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    assert serve(server, "--sweep", "concurrency=1,2", "--append", str(file)) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["max_concurrency"] for line in lines] == [1, 2]
    assert "Most output" in capsys.readouterr().out


def test_a_name_or_a_url_may_stand_alone(server, capsys, monkeypatch, tmp_path):
    assert appliance(["bench", server.url, "--preset", "smoke", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["dataset"], line["completed"], line["max_concurrency"]) == ("fixed:32,16", 8, 4)
    monkeypatch.setenv("APPLIANCE_RUNTIME_DIR", str(tmp_path))
    assert appliance(["bench", "--color", "never", "nobody"]) == 3
    assert "No run is called 'nobody'" in capsys.readouterr().err
    assert appliance(["bench", "serve", server.url, "--url", server.url]) == 2


def test_what_is_given_overrules_a_preset(server, capsys):
    words = ["bench", server.url, "--preset", "smoke", "--num-prompts", "3", "--json"]
    assert appliance(words) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 3


def test_repeated_runs_are_samples_of_one_row(server, tmp_path, capsys):
    file = str(tmp_path / "r.jsonl")
    assert serve(server, "--repeat", "3", "--row", "r", "--append", file) == 0
    assert "in the median" in capsys.readouterr().out
    assert appliance(["bench", "compare", file, file]) == 0
    assert "3 and 3 runs" in capsys.readouterr().out


def test_a_run_is_held_to_the_record_of_its_row(server, tmp_path, capsys):
    record = tmp_path / "record.jsonl"
    record.write_text(json.dumps({"row": "r", "gpu": None, "out_tok_s": 1e9}) + "\n")
    gate = ["--against", str(record), "--fail-on", "out_tok_s<-5%"]
    assert serve(server, "--row", "r", *gate) == 1
    assert "gate not met: r: out_tok_s<-5%" in capsys.readouterr().err
    assert serve(server, "--row", "other", *gate) == 4
    assert serve(server, *gate) == 2
    assert serve(server, "--fail-on", "failed>0") == 2


def test_saved_runs_are_compared_by_name(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("APPLIANCE_STATE_DIR", str(tmp_path))
    for name in ("before", "after"):
        assert serve(server, "--save", name) == 0
    assert appliance(["bench", "compare", "before", "after"]) == 0
    assert appliance(["bench", "compare", "after", "--against", "before", "--fail-on",
                      "failed>0"]) == 0  # fmt: skip
    assert serve(server, "--save", "../x") == 2


def test_plots_are_drawn_here_and_as_pictures(server, tmp_path, capsys):
    file = tmp_path / "p.png"
    assert serve(server, "--plot", "term", "--plot", str(file)) == 0
    told = capsys.readouterr()
    assert "time to first token, ms" in told.err and file.read_bytes().startswith(b"\x89PNG")
    assert serve(server, "--plot", "p.svg") == 2


def test_compare_gates_the_exit_code(tmp_path, capsys):
    for name, speed in (("a", 100.0), ("b", 80.0)):
        (tmp_path / name).write_text(json.dumps({"row": "r", "out_tok_s": speed}) + "\n")
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert appliance(["bench", "compare", *pair]) == 0
    assert appliance(["bench", "compare", *pair, "--fail-on", "out_tok_s<-10%"]) == 1
    assert "-20.0%" in capsys.readouterr().err
    assert appliance(["bench", "compare", *pair, "--fail-on", "nonsense"]) == 2


@pytest.mark.parametrize(
    "bad",
    [
        ["--request-rate", "fast"],
        ["--rate", "fast"],
        ["--label", "gpu"],
        ["--id-range", "3"],
        ["--extra-body", "x"],
        ["--dataset", "what"],
    ],
)
def test_wrong_usage_is_rc_2(server, bad, capsys):
    assert serve(server, *bad) == 2
    assert "fix" in capsys.readouterr().err
