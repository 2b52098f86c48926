"""Grammars beside everything else a request or a scheduler may do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from appliance.errors import RequestError
from appliance.runtime.offline import Engine, Generation
from appliance.runtime.schedule import scheduler
from appliance.runtime.schedule.constrain import add_forced
from appliance.runtime.schedule.draft import Draft
from appliance.runtime.schedule.request import Request
from appliance.runtime.schedule.running import Running
from appliance.runtime.wire.request import Grammar, Sampling, TokenRequest, ids_to_bytes
from appliance.runtime.wire.step import Step

SETTINGS = {"engine.threads": 1, "schedule.max_running": 16, "engine.max_total_tokens": 16000}
SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "pattern": "^[A-Za-z]{1,8}$"},
        "years_of_service": {"type": "integer", "minimum": 0, "maximum": 60},
        "department": {"enum": ["engineering", "sales", "support"]},
        "is_manager": {"type": "boolean"},
    },
    "required": ["first_name", "years_of_service", "department", "is_manager"],
}
PERSON = Grammar("json_schema", json.dumps(SCHEMA))
FREE = ["The weather in Berlin is", "Hello", "One, two, three"]
PROMPT = "An employee: "


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(None, SETTINGS) as made:
        yield made


def person(answer: Generation) -> None:
    assert answer.finish_reason == "stop"
    found = json.loads(answer.text)
    assert set(found) == set(SCHEMA["properties"])
    assert re.fullmatch("[A-Za-z]{1,8}", found["first_name"])
    assert 0 <= found["years_of_service"] <= 60


def ask(engine: Engine, grammar: Grammar = PERSON, **sampling: object) -> Generation:
    asked = {"max_tokens": 120, "temperature": 0.0, "grammar": grammar, **sampling}
    return engine.generate(PROMPT, asked)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule.depth": 1, "schedule.retract_every": 3},
        {"schedule.depth": 0, "schedule.retract_every": 2},
        {"schedule.prefix_cache": False},
        {"schedule.chunk": 16, "schedule.mixed_chunk": True},
        {"engine.max_total_tokens": 160},
    ],
    ids=lambda s: " ".join(f"{k.partition('.')[2]}={v}" for k, v in s.items()),
)
def test_same_person_however_it_is_scheduled(engine: Engine, settings: dict[str, object]) -> None:
    sampling = {"max_tokens": 100, "temperature": 0.0, "grammar": PERSON}
    want = ask(engine, max_tokens=100)
    person(want)
    with Engine(None, {**SETTINGS, **settings}) as other:
        answers = other.generate([PROMPT, PROMPT, PROMPT], sampling)
    assert [a.text for a in answers] == [want.text] * 3


def test_neighbours_write_what_they_write_alone(engine: Engine) -> None:
    sampling = {"max_tokens": 60, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    alone = [engine.generate(p, sampling).ids for p in FREE]
    mixed: list[dict[str, object]] = [sampling] * len(FREE)
    mixed += [{"max_tokens": 100, "grammar": PERSON, "seed": i} for i in range(8)]
    answers = engine.generate([*FREE, *[PROMPT] * 8], mixed)
    assert [a.ids for a in answers[: len(FREE)]] == alone
    for answer in answers[len(FREE) :]:
        person(answer)


def test_prefills_beside_leave_rows_under_a_grammar_as_they_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own prompts are computed in turn. Forced text is decoded meanwhile, for a step that
    computes it would wait for the prefill."""
    free = {"max_tokens": 30, "temperature": 0.7, "seed": 3, "ignore_eos": True}
    sampling = {"max_tokens": 100, "grammar": PERSON, "temperature": 0.0}
    prompts = [f"{i} {FREE[0]} fine. " * 6 for i in range(5)]
    alone = [engine.generate(p, free).ids for p in prompts]
    want = ask(engine, max_tokens=100).text
    kinds: list[tuple[bool, bool]] = []
    make = Draft.step

    def step(self: Draft, id: int, freed: list[int], beside: bool = False) -> Step:
        made = make(self, id, freed, beside)
        kinds.append((beside, made.prefill_rows > 0))
        return made

    forced: list[bool] = []

    def adds(running: Running, *rest: Any) -> None:
        forced.append(bool(running.beside.any()))
        add_forced(running, *rest)

    monkeypatch.setattr(Draft, "step", step)
    monkeypatch.setattr(scheduler, "add_forced", adds)
    beside = {"schedule.beside_rows": 1, "schedule.beside_filled": 0.0, "schedule.chunk": 16}
    with Engine(None, {**SETTINGS, **beside}) as other:
        ask(other)  # its grammar is known from now on, and keeps nobody waiting
        asked: list[dict[str, object]] = [sampling, *[free] * 5, sampling]
        first, *answers, last = other.generate([PROMPT, *prompts, PROMPT], asked)
    assert [a.ids for a in answers] == alone
    assert first.text == last.text == want
    assert {(True, True), (False, True), (False, False)} == set(kinds)
    assert forced and not any(forced)


def test_forced_text_takes_fewer_steps_and_is_the_same_kind_of_answer(engine: Engine) -> None:
    before = engine.scheduler.stats().steps
    jumped = ask(engine)
    took = engine.scheduler.stats().steps - before
    with Engine(None, {**SETTINGS, "schedule.jump_forward": False}) as plain:
        before = plain.scheduler.stats().steps
        person(ask(plain))
        whole = plain.scheduler.stats().steps - before
    person(jumped)
    assert took * 1.5 < whole
    assert took < len(jumped.ids)


def test_penalties_are_told_of_forced_tokens() -> None:
    sampling = Sampling(max_tokens=20, repetition_penalty=1.2)
    request = Request(TokenRequest(1, ids_to_bytes([5, 6, 7]), sampling), 1)
    request.output.extend([10, 11])
    request.slot = 0
    draft = Draft()
    draft.add_forced(request, start=4, ids=(11, 12, 13))
    step = draft.step(1, [])
    assert step.new[0].history.tolist() == [5, 6, 7, 10, 11, 12, 13]
    assert step.new[0].prompt_length == 3
    assert step.starts.tolist() == [4] and step.lengths.tolist() == [3]
    assert step.outputs.tolist() == [4] and step.samples.tolist() == [True]


def test_logprobs_are_of_every_token(engine: Engine) -> None:
    answer = ask(engine, logprobs=2)
    person(answer)
    assert len(answer.logprobs) == len(answer.ids)
    assert all(p.logprob is not None and p.logprob <= 0 for p in answer.logprobs)
    assert "".join(p.text for p in answer.logprobs).startswith(answer.text)


def test_prompt_logprobs(engine: Engine) -> None:
    answer = ask(engine, prompt_logprobs=1)
    person(answer)
    assert len(answer.prompt_logprobs) == answer.prompt_tokens


def test_stop_string_within_forced_text(engine: Engine) -> None:
    answer = ask(engine, stop="_of_")
    assert answer.finish_reason == "stop" and answer.matched == "_of_"
    assert answer.text.endswith('"years')


@pytest.mark.parametrize("most", range(1, 30, 4))
def test_length_ends_within_forced_text(engine: Engine, most: int) -> None:
    answer = ask(engine, max_tokens=most)
    assert len(answer.ids) == most and answer.finish_reason == "length"
    assert ask(engine).text.startswith(answer.text[:4])


def test_min_tokens_and_ignore_eos_do_not_outlive_the_grammar(engine: Engine) -> None:
    person(ask(engine, min_tokens=100))
    person(ask(engine, ignore_eos=True))


def test_end_is_allowed_where_the_grammar_is_complete(engine: Engine) -> None:
    answer = ask(engine, Grammar("regex", "[0-9]{1,40}"), temperature=1.0, seed=1)
    assert answer.finish_reason == "stop" and re.fullmatch("[0-9]{1,40}", answer.text)


def test_grammar_begins_behind_a_mark(engine: Engine) -> None:
    free = engine.generate(PROMPT, {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True})
    mark = free.ids[3]
    first = free.ids.index(mark)
    answer = ask(engine, msgspec.structs.replace(PERSON, after=(mark,)), ignore_eos=True)
    assert answer.ids[: first + 1] == free.ids[: first + 1]
    head = engine.generate(PROMPT, {"max_tokens": first + 1, "temperature": 0.0}).text
    assert answer.text.startswith(head)
    assert set(json.loads(answer.text[len(head) :])) == set(SCHEMA["properties"])


def test_a_replayed_request_goes_on_in_its_grammar(engine: Engine) -> None:
    """Cut at every token: what is written behind the cut still completes the object."""
    whole = ask(engine)
    for cut in range(1, len(whole.ids) - 1, 3):
        stream = engine.stream(PROMPT, {"max_tokens": 120, "temperature": 0.0, "grammar": PERSON})
        stream._request = msgspec.structs.replace(
            stream._request, output=ids_to_bytes(whole.ids[:cut])
        )
        rest = stream.whole()
        full = engine._text._vocabulary.decode([*whole.ids[:cut], *rest.ids], True)  # type: ignore[union-attr]
        assert full == whole.text


def test_a_replayed_request_that_was_complete_ends_at_once(engine: Engine) -> None:
    whole = ask(engine)
    stream = engine.stream(PROMPT, {"max_tokens": 120, "temperature": 0.0, "grammar": PERSON})
    stream._request = msgspec.structs.replace(stream._request, output=ids_to_bytes(whole.ids))
    rest = stream.whole()
    assert rest.ids == [] and rest.finish_reason == "stop"


@pytest.mark.parametrize(
    "grammar,code",
    [
        (Grammar("regex", "("), "grammar_invalid"),
        (Grammar("ebnf", "nonsense"), "grammar_invalid"),
        (Grammar("json_schema", "{"), "grammar_invalid"),
        (Grammar("json_schema", '"x"'), "grammar_invalid"),
        (Grammar("json_schema", '{"type": "frog"}'), "grammar_invalid"),
        (Grammar("json_schema", '{"type":"array","uniqueItems":true}'), "grammar_invalid"),
        (Grammar("structural_tag", "{}"), "grammar_invalid"),
        (Grammar("json_schema", "[" * 100_000), "grammar_too_complex"),
        (Grammar("regex", "a" * 300_000), "grammar_too_complex"),
    ],
)
def test_a_wrong_grammar_is_told(engine: Engine, grammar: Grammar, code: str) -> None:
    with pytest.raises(RequestError) as told:
        ask(engine, grammar)
    assert told.value.code == code and told.value.status == 400
    assert "/project/" not in told.value.message


def test_lenient_schemas_pass_over_what_no_library_holds(engine: Engine) -> None:
    source = '{"type":"array","uniqueItems":true,"items":{"type":"boolean"},"maxItems":3}'
    answer = ask(engine, Grammar("json_schema", source, strict=False))
    assert all(isinstance(v, bool) for v in json.loads(answer.text))


def test_structural_tag(engine: Engine) -> None:
    tag = {
        "type": "structural_tag",
        "format": {
            "type": "tag", "begin": "<call>", "end": "</call>",
            "content": {"type": "json_schema", "json_schema": SCHEMA},
        },
    }  # fmt: skip
    text = ask(engine, Grammar("structural_tag", json.dumps(tag))).text
    assert text.startswith("<call>") and text.endswith("</call>")
    assert set(json.loads(text[6:-7])) == set(SCHEMA["properties"])


def test_json_object_is_an_object(engine: Engine) -> None:
    answer = ask(engine, Grammar("json_object", any_whitespace=True), max_tokens=400)
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    assert answer.text.startswith("{")
