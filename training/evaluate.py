"""Asks a model folder held-out questions through transformers, greedily, and counts.

    python -m training.evaluate FOLDER [--limit N] [--device cuda] [--out FILE]

Exit status 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.documents import Document, Message, ToolCall, chat
from training.topics import arithmetic, stories, structured, talk, tools, unknown, world

GOALS = {"held_out_sums": 0.98, "json_valid": 0.99, "stops_by_eos": 0.999}
_BATCH = 256
_MOST_TOKENS = 256


@dataclass(frozen=True)
class Question:
    kind: str
    document: Document
    """Ends with the user's turn."""
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Report:
    scores: dict[str, float]
    """Share of right answers by kind, 0 to 1."""
    asked: dict[str, int]
    wrong: list[dict[str, str]]
    """Some of the questions that failed, with the answers."""
    seconds: float

    @property
    def missed(self) -> list[str]:
        """Goals that are not met, or were not measured."""
        return [name for name, goal in GOALS.items() if self.scores.get(name, 0.0) < goal]


def last_number(answer: str) -> int | None:
    numbers = re.findall(r"-?\d+", answer)
    return int(numbers[-1]) if numbers else None


def totals(total: int, answer: str) -> bool:
    return last_number(answer) == total


def fits(request: structured.Request, answer: str) -> bool:
    """Whether the whole answer is one JSON object with just the keys and types asked for."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    if not isinstance(value, dict) or set(value) != set(request.kinds):
        return False
    return all(_is(value[key], kind) for key, kind in request.kinds.items())


def _is(value: Any, kind: str) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind == "string":
        return isinstance(value, str)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (kind == "number" and isinstance(value, float))


def equals(expected: Any, answer: str) -> bool:
    try:
        return bool(json.loads(answer) == expected)
    except ValueError:
        return False


def calls(call: ToolCall, answer: str) -> bool:
    found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", answer.strip(), re.DOTALL)
    return found is not None and equals({"name": call.name, "arguments": call.arguments}, found[1])


def is_one_of(answers: tuple[str, ...], answer: str) -> bool:
    return answer.strip() in answers


def holds(words: str, answer: str) -> bool:
    return words in answer


def is_longer_than(words: int, answer: str) -> bool:
    return len(answer.split()) > words


def held_out_sums(rng: Random, limit: int) -> list[Question]:
    pairs = sorted(arithmetic.HELD_OUT | {(b, a) for a, b in arithmetic.HELD_OUT})
    rng.shuffle(pairs)
    return [
        Question("held_out_sums", chat(arithmetic.ask_sum(rng, a, b)), partial(totals, a + b))
        for a, b in pairs[:limit]
    ]


def json_requests(rng: Random, limit: int) -> list[Question]:
    out = []
    for _ in range(limit):
        request = structured.request(rng, held_out=True)
        asked = chat(request.question, system=request.system)
        out.append(Question("json_valid", asked, partial(fits, request)))
        if request.given:
            out.append(Question("json_exact", asked, partial(equals, request.answer)))
    return out


def tool_requests(rng: Random, limit: int) -> list[Question]:
    out = []
    for _ in range(limit):
        request = tools.request(rng)
        user = Message("user", request.question)
        asked = Document((user,), request.tools)
        out.append(Question("tool_calls", asked, partial(calls, request.call)))
        called = Message("assistant", "", (request.call,))
        answered = Document((user, called, Message("tool", request.result)), request.tools)
        out.append(Question("tool_answers", answered, partial(is_one_of, (request.answer,))))
    return out


def known_things(rng: Random, limit: int) -> list[Question]:
    out = []
    for country, city, _ in rng.sample(world.COUNTRIES, min(limit, len(world.COUNTRIES))):
        asked = chat(f"What is the capital of {country}?")
        out.append(Question("capitals", asked, partial(holds, city)))
    for wordings, answers in talk.TALK[:limit]:
        asked = chat(rng.choice(wordings))
        out.append(Question("talk", asked, partial(is_one_of, answers)))
    for _ in range(min(limit, 60)):
        out.append(Question("unknown", chat(unknown.question(rng)), partial(holds, "small")))
    for _ in range(min(limit, 40)):
        asked = chat(stories.exchange(rng)[0])
        out.append(Question("stories", asked, partial(is_longer_than, 11)))
    return out


def questions(seed: int, limit: int) -> list[Question]:
    """At most `limit` of each kind; the same for the same seed."""
    rng = Random(f"evaluate-{seed}")
    return [
        *held_out_sums(rng, limit),
        *json_requests(rng, min(limit, 400)),
        *tool_requests(rng, min(limit, 150)),
        *known_things(rng, limit),
    ]


class Asker:
    """A model folder, asked in batches."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        self._device = device
        eos = self._model.generation_config.eos_token_id
        self._eos = eos if isinstance(eos, list) else [eos]

    def prompt(self, document: Document) -> str:
        text: str = self._tokenizer.apply_chat_template(
            [message.as_openai() for message in document.messages],
            tools=list(document.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        return text

    @torch.inference_mode()
    def answers(self, documents: list[Document]) -> list[tuple[str, bool]]:
        """(answer, whether it ended by itself) of each, greedily."""
        prompts = [self.prompt(document) for document in documents]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out: list[tuple[str, bool]] = [("", False)] * len(prompts)
        for at in range(0, len(order), _BATCH):
            chosen = order[at : at + _BATCH]
            batch = self._tokenizer(
                [prompts[i] for i in chosen],
                return_tensors="pt",
                padding=True,
                add_special_tokens=False,
            ).to(self._device)
            made = self._model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=_MOST_TOKENS,
                do_sample=False,
                temperature=None,
                top_p=None,
            )
            for i, row in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in self._eos), None)
                said = self._tokenizer.decode(row[:end], skip_special_tokens=True)
                out[i] = (said, end is not None)
        return out


def evaluate(
    folder: Path,
    *,
    device: str = "cpu",
    limit: int = 2000,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Report:
    """Figures of a folder that holds a model and its tokenizer."""
    began = time.monotonic()
    asked = questions(seed, limit)
    unique = list({id(q.document): q.document for q in asked}.values())
    place = {id(document): i for i, document in enumerate(unique)}
    answers = Asker(folder, device, dtype).answers(unique)
    right: dict[str, list[bool]] = {}
    wrong: list[dict[str, str]] = []
    for question in asked:
        said, _ = answers[place[id(question.document)]]
        good = question.right(said)
        right.setdefault(question.kind, []).append(good)
        if not good and sum(w["kind"] == question.kind for w in wrong) < 3:
            last = question.document.messages[-1].content
            wrong.append({"kind": question.kind, "asked": last, "said": said})
    right["stops_by_eos"] = [ended for _, ended in answers]
    scores = {kind: round(sum(marks) / len(marks), 5) for kind, marks in right.items()}
    counts = {kind: len(marks) for kind, marks in right.items()}
    return Report(scores, counts, wrong, round(time.monotonic() - began, 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report = evaluate(args.folder, device=args.device, limit=args.limit, seed=args.seed)
    text = json.dumps(asdict(report) | {"missed": report.missed}, indent=2, ensure_ascii=False)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
