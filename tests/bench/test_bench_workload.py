import json

import numpy as np
import pytest

from appliance.bench import files, workload
from appliance.bench.workload import Prompt, Workload
from appliance.errors import ApplianceError, NotFoundError, UsageError


def load(dataset: str, requests: int = 64, **more: object) -> Workload:
    return Workload(dataset=dataset, requests=requests, model="m", **more)  # type: ignore[arg-type]


def prompts_of(work: Workload) -> list[list[int]]:
    return [json.loads(job.body)["prompt"] for job in workload.jobs(work)]


@pytest.mark.parametrize(
    ("dataset", "ins", "outs"),
    [
        ("sharegpt-like", (4, 1024), (4, 1024)),
        ("random", (1, 100), (1, 20)),
        ("fixed:128,256", (128, 128), (256, 256)),
        ("range:512-1024,128-512", (512, 1024), (128, 512)),
        ("prefix:4,32,16,8", (48, 48), (8, 8)),
    ],
)
def test_lengths_are_in_bounds_and_those_of_the_bodies(dataset, ins, outs):
    work = load(dataset, input_len=100, output_len=20)
    got_in, got_out = workload.lengths(work)
    assert got_in.min() >= ins[0] and got_in.max() <= ins[1]
    assert got_out.min() >= outs[0] and got_out.max() <= outs[1]
    for job, prompt in zip(workload.jobs(work), prompts_of(work), strict=True):
        assert len(prompt) == job.input_len == got_in[job.index]
        body = json.loads(job.body)
        assert body["max_tokens"] == job.output_len == got_out[job.index]
        assert body["stream"] and body["ignore_eos"] and body["temperature"] == 0
        assert body["stream_options"] == {"include_usage": True}
        assert all(300 <= i <= 3000 for i in prompt)


def test_sharegpt_like_has_the_means_it_promises():
    ins, outs = workload.lengths(load("sharegpt-like", 20_000))
    assert abs(ins.mean() - 208) < 5
    assert abs(outs.mean() - 204) < 5
    assert np.median(ins) < ins.mean()


def test_random_keeps_the_range_ratio():
    ins, outs = workload.lengths(load("random", 500, input_len=100, output_len=50, range_ratio=0.5))
    assert (ins.min(), ins.max()) == (50, 100)
    assert (outs.min(), outs.max()) == (25, 50)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    one = [job.body for job in workload.jobs(load("sharegpt-like"))]
    assert one == [job.body for job in workload.jobs(load("sharegpt-like"))]
    assert one != [job.body for job in workload.jobs(load("sharegpt-like", seed=1))]


def test_shares_together_are_the_whole_workload():
    work = load("range:4-9,1-5", 10, rate=7.0)
    whole = workload.jobs(work)
    shares = [job for share in range(3) for job in workload.jobs(work, share, 3)]
    assert sorted(shares, key=lambda job: job.index) == whole
    assert [job.arrival for job in whole] == sorted(job.arrival for job in whole)


def test_no_two_random_prompts_begin_alike():
    work = load("fixed:2,1", 5000, id_range=(10, 90))
    assert len({tuple(prompt) for prompt in prompts_of(work)}) == 5000


def test_prefix_groups_share_their_head_alone():
    shown = prompts_of(load("prefix:4,32,16,8", 64))
    heads = [tuple(prompt[:32]) for prompt in shown]
    assert sorted(heads.count(head) for head in set(heads)) == [16] * 4
    assert len({tuple(prompt[32:]) for prompt in shown}) == 64


def test_poisson_arrivals_have_the_rate_and_inf_has_none():
    due = workload.arrivals(load("random", 20_000, rate=8.0))
    assert abs(20_000 / due[-1] - 8) < 0.3
    gaps = np.diff(due)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05
    assert not workload.arrivals(load("random")).any()


def test_text_and_chat_send_words():
    (job,) = workload.jobs(load("fixed:5,2", 1, form="text"))
    assert len(json.loads(job.body)["prompt"].split()) == 5
    (job,) = workload.jobs(load("fixed:5,2", 1, api="chat"))
    assert job.path == "/v1/chat/completions"
    assert json.loads(job.body)["messages"][0]["role"] == "user"


def test_native_bodies_are_those_of_generate():
    (job,) = workload.jobs(load("fixed:5,2", 1, api="native", extra={"rid": "r"}))
    body = json.loads(job.body)
    assert job.path == "/generate" and len(body["input_ids"]) == 5
    assert body["sampling_params"]["max_new_tokens"] == 2 and body["sampling_params"]["ignore_eos"]
    assert body["stream"] is True and body["rid"] == "r"


def test_a_duration_at_a_rate_sends_what_arrives_in_it():
    whole = load("random", 500, rate=10.0)
    cut = workload.timed(whole, 3.0, bounded=False)
    due = workload.arrivals(cut)
    assert due[-1] < 3.0 and np.array_equal(due, workload.arrivals(whole)[: len(due)])
    assert workload.arrivals(whole)[len(due)] >= 3.0
    with pytest.raises(UsageError):
        workload.timed(whole, 0.0, bounded=False)


def test_extra_fields_win():
    (job,) = workload.jobs(load("fixed:5,2", 1, extra={"temperature": 0.5, "top_k": 3}))
    body = json.loads(job.body)
    assert (body["temperature"], body["top_k"]) == (0.5, 3)


@pytest.mark.parametrize(
    "work",
    [
        load("nonsense"),
        load("range:9-4,1-2"),
        load("fixed:0,4"),
        load("random", input_len=0),
        load("random", range_ratio=2.0),
        load("random", id_range=(9, 9)),
        load("random", 0),
    ],
)
def test_what_cannot_be_sent_is_refused_with_a_cure(work):
    with pytest.raises(UsageError) as refused:
        workload.check(work)
    assert refused.value.hint


def test_json_lines(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "hello", "max_tokens": 7}\n\n'
        '{"prompt": [1, 2, 3]}\n'
        '{"messages": [{"role": "user", "content": "x"}], "output_len": 9}\n'
    )
    prompts = files.read_jsonl(file, 0, 33)
    assert [p.output_len for p in prompts] == [7, 33, 9]
    work = load("p.jsonl", 3, prompts=prompts)
    paths = [job.path for job in workload.jobs(work)]
    assert paths == ["/v1/completions", "/v1/completions", "/v1/chat/completions"]
    assert prompts[1] == Prompt(33, ids=[1, 2, 3])
    assert len(files.read_jsonl(file, 1, 33)) == 1


@pytest.mark.parametrize("text", ["", "no json", "{}", '{"prompt": 3}'])
def test_json_lines_that_cannot_be_used_are_named(tmp_path, text):
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        files.read_jsonl(file, 0, 1)
    assert str(file) in refused.value.message and refused.value.hint


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(NotFoundError):
        files.read_jsonl(tmp_path / "none.jsonl", 0, 1)
    with pytest.raises(ApplianceError):
        files.read_sharegpt(tmp_path / "none.json", 1, 0, "ids", "http://127.0.0.1:1", "m", "")
