"""Writes documents by chance, and packs them into rows of tokens.

    python -m training.text --tokenizer FILE --out DIR --seed S --worker K

fills DIR with shards, always a few ahead of the reader, who deletes what was read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.documents import Document, Exchange, Message, Segment, chat, segments
from training.topics import arithmetic, facts, stories, structured, talk, tools, unknown, world
from training.topics.wording import casual

IGNORED = -100
"""Target of a token that is not learned."""
_AHEAD_DEFAULT = 24


def exchange(rng: Random) -> Exchange:
    """One question of any kind that needs no tool, and its answer."""
    dice = rng.random()
    if dice < 0.28:
        return arithmetic.exchange(rng)
    if dice < 0.52:
        return talk.exchange(rng)
    if dice < 0.74:
        return facts.exchange(rng)
    if dice < 0.84:
        return stories.exchange(rng)
    if dice < 0.92:
        return unknown.exchange(rng)
    asked = structured.request(rng)
    question = f"{asked.system}\n{asked.question}" if asked.system else asked.question
    return question, structured.as_text(asked.answer)


def _system(rng: Random, chance: float = 0.3) -> str:
    return rng.choice(talk.SYSTEM_PROMPTS) if rng.random() < chance else ""


def _said(exchanges: list[Exchange], system: str = "") -> Document:
    return chat(*itertools.chain.from_iterable(exchanges), system=system)


def _sums(rng: Random) -> Document:
    count = rng.choice((1, 1, 1, 2, 3, 5))
    return _said([arithmetic.exchange(rng) for _ in range(count)], _system(rng, 0.15))


def _one_topic(topic: Callable[[Random], Exchange]) -> Callable[[Random], Document]:
    def write(rng: Random) -> Document:
        count = rng.choice((1, 1, 1, 2))
        return _said([topic(rng) for _ in range(count)], _system(rng))

    return write


def _again(rng: Random) -> list[Exchange]:
    """A fact, then the same question about another thing in few words."""
    pick = rng.sample(world.COUNTRIES, 2)
    answers = [f"The capital of {c} is {t}".rstrip(".") + "." for c, t, _ in pick]
    second = rng.choice(("And of {c}?", "And {c}?", "What about {c}?", "And the capital of {c}?"))
    return [
        (casual(rng, f"What is the capital of {pick[0][0]}?"), answers[0]),
        (casual(rng, second.format(c=pick[1][0])), answers[1]),
    ]


def _conversation(rng: Random) -> Document:
    exchanges = [exchange(rng) for _ in range(rng.choice((1, 2, 2, 3, 4)))]
    dice = rng.random()
    if dice < 0.2:
        told, asked = talk.introduction(rng)
        exchanges = [told, *exchanges[: rng.randrange(4)], asked]
    elif dice < 0.26:
        exchanges.append(talk.NAMELESS)
    elif dice < 0.4:
        exchanges[rng.randrange(len(exchanges)) :] = _again(rng)
    return _said(exchanges, _system(rng))


def _plain(rng: Random) -> Document:
    dice = rng.random()
    if dice < 0.4:
        text = "\n\n".join(stories.story(rng) for _ in range(rng.choice((1, 1, 2))))
    elif dice < 0.7:
        pairs = [exchange(rng) for _ in range(rng.choice((1, 2, 3)))]
        text = "\n\n".join(f"Q: {asked}\nA: {answer}" for asked, answer in pairs)
    elif dice < 0.9:
        text = rng.choice((" ", "\n")).join(facts.sentence(rng) for _ in range(rng.randrange(1, 8)))
    else:
        text = " ".join(rng.sample(talk.ABOUT, rng.randrange(1, 7)))
    return Document(text=text, begins=rng.random() < 0.5)


def _sheet(rng: Random) -> Document:
    return Document(text=arithmetic.sheet(rng), begins=rng.random() < 0.5)


# Weights count documents; the sheets of sums are short but learned whole.
_KINDS: tuple[tuple[float, Callable[[Random], Document]], ...] = (
    (0.30, _sums),
    (0.06, _sheet),
    (0.12, _one_topic(talk.exchange)),
    (0.10, _one_topic(facts.exchange)),
    (0.06, _one_topic(stories.exchange)),
    (0.05, _one_topic(unknown.exchange)),
    (0.10, structured.document),
    (0.08, tools.document),
    (0.09, _conversation),
    (0.04, _plain),
)
_WEIGHTS = tuple(itertools.accumulate(weight for weight, _ in _KINDS))


def document(rng: Random) -> Document:
    write = rng.choices(_KINDS, cum_weights=_WEIGHTS)[0][1]
    return write(rng)


def long_document(rng: Random, length: int) -> Document:
    """A conversation of many turns, about `length` tokens long."""
    aim = rng.uniform(0.4, 0.9) * length * 3.2
    told, asked = talk.introduction(rng)
    first = tools.document(rng) if rng.random() < 0.35 else _said([told], _system(rng))
    messages = list(first.messages)
    written = sum(len(m.content) for m in messages)
    written += sum(len(json.dumps(tool)) for tool in first.tools)
    while written < aim:
        pair = exchange(rng)
        if first.tools and pair[0].strip().endswith("weather"):
            continue
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
        written += len(pair[0]) + len(pair[1]) + 24
    if not first.tools:
        messages += [Message("user", asked[0]), Message("assistant", asked[1])]
    return Document(tuple(messages), first.tools)


def plain_text(item: Document) -> str:
    return "".join(segment.text for segment in segments(item))


def sample_texts(seed: int, count: int) -> Iterator[str]:
    """`count` whole documents as text, for the tokenizer's training."""
    rng = Random(f"tokenizer-{seed}")
    for _ in range(count):
        yield plain_text(document(rng))


Ids = list[int]


class Packer:
    """Fills rows of `length` tokens with whole documents, first fit over a few open rows.

    A row's three lines: tokens; targets (the next token, or IGNORED); the document's number
    within the row, -1 where nothing is.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self._tokenizer = tokenizer
        self._length = length
        self._open: list[list[tuple[Ids, Ids]]] = []
        self._used: list[int] = []

    def encode(self, parts: list[list[Segment]]) -> list[tuple[Ids, Ids]]:
        """(tokens, targets) of each document."""
        flat = [segment.text for part in parts for segment in part]
        coded = iter(self._tokenizer.encode_batch(flat, add_special_tokens=False))
        out = []
        for part in parts:
            ids: Ids = []
            learned: list[bool] = []
            for segment in part:
                piece = next(coded).ids
                ids += piece
                learned += [segment.learned] * len(piece)
            targets = [
                token if learn else IGNORED
                for token, learn in zip(ids[1:], learned[1:], strict=True)
            ]
            out.append((ids, [*targets, IGNORED]))
        return out

    def rows(self, items: list[Document], open_rows: int = 16) -> list[npt.NDArray[np.int16]]:
        """Rows [3, length] that became full; documents longer than a row are dropped."""
        full = []
        for ids, targets in self.encode([segments(item) for item in items]):
            if len(ids) > self._length:
                continue
            fitting = (i for i, used in enumerate(self._used) if used + len(ids) <= self._length)
            i = next(fitting, -1)
            if i < 0:
                if len(self._open) >= open_rows:
                    full.append(self._close(int(np.argmax(self._used))))
                self._open.append([])
                self._used.append(0)
            self._open[i].append((ids, targets))
            self._used[i] += len(ids)
        return full

    def _close(self, index: int) -> npt.NDArray[np.int16]:
        self._used.pop(index)
        row = np.zeros((3, self._length), np.int16)
        row[1], row[2] = IGNORED, -1
        at = 0
        for number, (ids, targets) in enumerate(self._open.pop(index)):
            end = at + len(ids)
            row[0, at:end], row[1, at:end], row[2, at:end] = ids, targets, number
            at = end
        return row


def write_shards(
    tokenizer: Tokenizer, out: Path, *, seed: int, worker: int, length: int, rows: int, ahead: int
) -> Iterator[Path]:
    """Endless shards [rows, 3, length] named after the worker; waits while `ahead` are unread."""
    rng = Random(f"text-{seed}-{worker}-{length}")
    packer = Packer(tokenizer, length)
    parent = os.getppid()
    ready: list[npt.NDArray[np.int16]] = []
    for number in itertools.count():
        while len(ready) < rows:
            if length > 1024:
                items = [long_document(rng, length) for _ in range(16)]
            else:
                items = [document(rng) for _ in range(256)]
            ready += packer.rows(items, open_rows=1 if length > 1024 else 16)
        path = out / f"{length}-{worker:02}-{number:06}.npy"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.stack(ready[:rows]))
        part.rename(path)
        ready = ready[rows:]
        yield path
        while len(list(out.glob(f"{length}-{worker:02}-*.npy"))) >= ahead:
            if os.getppid() != parent:
                return
            time.sleep(0.2)
        if os.getppid() != parent:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--ahead", type=int, default=_AHEAD_DEFAULT)
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.nice(5)
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    for _ in write_shards(
        tokenizer,
        args.out,
        seed=args.seed,
        worker=args.worker,
        length=args.length,
        rows=args.rows,
        ahead=args.ahead,
    ):
        pass


if __name__ == "__main__":
    main()
