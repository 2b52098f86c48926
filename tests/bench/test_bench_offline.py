"""The engine in a child of the bench: the same workloads, the same figures, no server."""

import json

import pytest

from appliance.bench import offline
from appliance.bench.workload import Workload
from appliance.cli.main import run as appliance
from appliance.errors import EngineError, UsageError


def measured(capsys, *words: str) -> dict:
    assert appliance(["bench", "offline", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_prompt_is_answered_with_the_tokens_asked_for(capsys, tmp_path):
    talks = [
        {"conversations": [{"value": "Why is the sky blue? " * n}, {"value": "Because it is."}]}
        for n in (1, 2, 3, 700)
    ]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(talks))
    line = measured(capsys, "--dataset", "range:4-12,3-9", "--num-prompts", "6")
    assert (line["kind"], line["completed"], line["short"]) == ("offline", 6, 0)
    assert line["ready_s"] > 0 and line["pages"] > 0 and line["ttft_ms_p50"] > 0
    line = measured(capsys, "--dataset", f"sharegpt:{file}", "--num-prompts", "3")
    assert (line["completed"], line["short"]) == (3, 0)
    assert line["input_tokens"] < 100


def test_what_only_a_server_can_do_is_refused():
    with pytest.raises(UsageError, match="all prompts are given at once"):
        offline.run(offline.Inside(Workload("fixed:4,4", 2, "m", rate=1.0), "nowhere"))


def test_an_engine_that_cannot_start_says_why(tmp_path):
    task = offline.Inside(Workload("fixed:4,4", 2, "m"), str(tmp_path / "none"))
    with pytest.raises((EngineError, UsageError), match="none"):
        offline.run(task)
