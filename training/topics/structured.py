"""Requests to answer in JSON with given keys, and the objects that answer them.

One tenth of all sets of keys is held out: never asked for in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from training.documents import Document, chat
from training.topics import arithmetic, world
from training.topics.wording import listed, made_up

Value = str | int | float | bool | list[str]

_PEOPLE = (
    "Ada Ben Clara David Emma Felix Grace Hugo Ivy Jack Kira Liam Maria Noah Olga Paul Quinn Rosa "
    "Simon Tara Umar Vera Will Yusuf Zoe Anna Boris Chloe Dora Erik Fatima George Hana Alice Bob"
).split()
_SURNAMES = (
    "Smith Miller Lopez Kim Novak Rossi Berg Stone Hill Marsh Sato Khan Weber Dubois".split()
)
_JOBS = "baker teacher doctor painter farmer pilot nurse judge cook singer writer miner".split()
_FOODS = "pizza soup bread rice pasta salad cake curry apples cheese fish beans".split()
_FRUITS = "apples pears plums cherries lemons grapes figs melons".split()
_HOBBIES = "chess tennis reading swimming cooking dancing hiking painting fishing music".split()
_ITEMS = "lamp chair table clock phone book bottle bag shirt hat ring drum bike cup".split()
_LANGUAGES = "English French German Spanish Italian Greek Arabic Japanese Dutch Polish".split()
_COLOURS = "red green blue yellow black white brown orange purple grey pink".split()
_PETS = "cat dog horse rabbit parrot mouse goat duck turtle fish".split()
_SIZES = "small medium large".split()
_MOODS = "positive negative neutral".split()
_TITLES = "title label topic subject code tag note word item thing".split()


def _name(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.35 else rng.choice(_PEOPLE)


def _city(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.2 else rng.choice(world.CAPITALS)


@dataclass(frozen=True)
class Field:
    key: str
    kind: str
    """string, integer, number, boolean or array (of strings)."""
    make: Callable[[Random], Value]
    says: str
    """A sentence without its subject; {v} is the value, {n} `not` when it is false."""


def _one_of(words: list[str]) -> Callable[[Random], Value]:
    return lambda rng: rng.choice(words)


def _up_to(limit: int) -> Callable[[Random], Value]:
    return lambda rng: rng.randrange(1, limit)


def _some(words: list[str]) -> Callable[[Random], Value]:
    return lambda rng: rng.sample(words, rng.choice((1, 2, 2, 3)))


def _flag(rng: Random) -> Value:
    return rng.random() < 0.5


FIELDS: tuple[Field, ...] = (
    Field("name", "string", _name, "is called {v}"),
    Field("first_name", "string", _name, "has the first name {v}"),
    Field("last_name", "string", _one_of(_SURNAMES), "has the last name {v}"),
    Field("age", "integer", _up_to(100), "is {v} years old"),
    Field("city", "string", _city, "lives in {v}"),
    Field("birthplace", "string", _city, "was born in {v}"),
    Field("country", "string", lambda rng: rng.choice(world.COUNTRIES)[0], "comes from {v}"),
    Field("job", "string", _one_of(_JOBS), "works as a {v}"),
    Field("occupation", "string", _one_of(_JOBS), "earns a living as a {v}"),
    Field("color", "string", _one_of(_COLOURS), "likes the color {v}"),
    Field("favorite_color", "string", _one_of(_COLOURS), "has {v} as favorite color"),
    Field("food", "string", _one_of(_FOODS), "likes to eat {v}"),
    Field("pet", "string", _one_of(_PETS), "has a {v} as a pet"),
    Field("animal", "string", _one_of(_PETS), "owns a {v}"),
    Field("day", "string", _one_of(world.DAYS), "arrives on {v}"),
    Field("date", "string", lambda rng: f"20{rng.randrange(10, 40)}-{rng.randrange(1, 13):02}-"
          f"{rng.randrange(1, 29):02}", "signed on {v}"),
    Field("month", "string", _one_of(world.MONTHS), "has a birthday in {v}"),
    Field("email", "string", lambda rng: f"{_name(rng).lower()}@{made_up(rng).lower()}.com",
          "can be reached at {v}"),
    Field("language", "string", _one_of(_LANGUAGES), "speaks {v}"),
    Field("hobby", "string", _one_of(_HOBBIES), "has {v} as a hobby"),
    Field("hobbies", "array", _some(_HOBBIES), "enjoys {v}"),
    Field("fruits", "array", _some(_FRUITS), "buys {v}"),
    Field("tags", "array", _some(_ITEMS), "carries the tags {v}"),
    Field("languages", "array", _some(_LANGUAGES), "reads {v}"),
    Field("height", "integer", lambda rng: rng.randrange(100, 210), "is {v} cm tall"),
    Field("weight", "integer", _up_to(120), "weighs {v} kg"),
    Field("children", "integer", _up_to(9), "has {v} children"),
    Field("quantity", "integer", _up_to(60), "orders {v} pieces"),
    Field("count", "integer", _up_to(60), "counts {v} in all"),
    Field("year", "integer", lambda rng: rng.randrange(1900, 2031), "started in {v}"),
    Field("id", "integer", lambda rng: rng.randrange(1, 10000), "has the id {v}"),
    Field("score", "integer", _up_to(101), "has a score of {v}"),
    Field("price", "number", lambda rng: rng.randrange(5, 400) / 4, "pays {v} dollars"),
    Field("rating", "number", lambda rng: rng.randrange(10, 50) / 10, "gets a rating of {v}"),
    Field("item", "string", _one_of(_ITEMS), "wants a {v}"),
    Field("product", "string", _one_of(_ITEMS), "bought a {v}"),
    Field("size", "string", _one_of(_SIZES), "takes the size {v}"),
    Field("sentiment", "string", _one_of(_MOODS), "sounds {v}"),
    Field("married", "boolean", _flag, "is {n}married"),
    Field("student", "boolean", _flag, "is {n}a student"),
    Field("active", "boolean", _flag, "is {n}active"),
    Field("happy", "boolean", _flag, "is {n}happy"),
    Field("member", "boolean", _flag, "is {n}a member"),
    Field("available", "boolean", _flag, "is {n}available"),
)  # fmt: skip


def is_held_out(keys: list[str]) -> bool:
    """Whether a set of keys is kept from training; single keys never are."""
    digest = hashlib.sha256("+".join(sorted(keys)).encode()).digest()
    return len(keys) > 1 and digest[0] % 10 == 0


@dataclass(frozen=True)
class Request:
    """A question whose whole answer is one JSON object."""

    system: str
    question: str
    answer: dict[str, Value]
    kinds: dict[str, str]
    """key -> JSON type, in the order asked for."""
    given: bool
    """Whether the question holds the values."""


def schema_of(fields: list[tuple[str, str]], rng: Random) -> dict[str, Any]:
    """A JSON schema as clients write it; chance decides the optional parts."""
    properties: dict[str, Any] = {}
    for key, kind in fields:
        properties[key] = {"type": kind}
        if kind == "array":
            properties[key]["items"] = {"type": "string"}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        schema["required"] = [key for key, _ in fields]
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    return schema


def request(rng: Random, *, held_out: bool = False) -> Request:
    """A request whose keys are (not) held out."""
    while True:
        chosen = rng.sample(FIELDS, rng.choice((1, 2, 2, 3, 3, 4, 5)))
        if is_held_out([f.key for f in chosen]) == held_out:
            break
    given = rng.random() < 0.75
    if not held_out and rng.random() < 0.2:
        return _nouns(rng)
    answer = {field.key: field.make(rng) for field in chosen}
    fields = [(field.key, field.kind) for field in chosen]
    text = _text(rng, chosen, answer) if given else ""
    system, question = _wording(rng, fields, text)
    return Request(system, question, answer, dict(fields), given)


def _nouns(rng: Random) -> Request:
    """Keys that are made up; the text states each as `key: value`."""
    count = rng.choice((1, 2, 3))
    keys = [k.lower() for k in dict.fromkeys(made_up(rng) for _ in range(count))]
    if rng.random() < 0.5:
        keys = rng.sample(_TITLES, count)
    answer: dict[str, Value] = {}
    kinds: dict[str, str] = {}
    for key in keys:
        kinds[key] = rng.choice(("string", "string", "integer"))
        number = rng.randrange(1000)
        answer[key] = number if kinds[key] == "integer" else _word(rng)
    if is_held_out(keys):
        return _nouns(rng)
    form = rng.choice(("{k}: {v}", "the {k} is {v}", "{k} = {v}"))
    order = rng.sample(keys, len(keys))
    text = rng.choice((", ", "; ", "\n")).join(form.format(k=k, v=answer[k]) for k in order)
    system, question = _wording(rng, list(kinds.items()), text)
    return Request(system, question, answer, kinds, True)


def _word(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.5 else rng.choice(_ITEMS + _HOBBIES + _JOBS)


def _text(rng: Random, chosen: list[Field], answer: dict[str, Value]) -> str:
    """Sentences that state every value, in another order."""
    subject = "Somebody"
    order = rng.sample(chosen, len(chosen))
    by_key = {field.key: field for field in chosen}
    if "name" in by_key and rng.random() < 0.8:
        subject = str(answer["name"])
        order = [field for field in order if field.key != "name"]
        if not order:
            return rng.choice((f"This is {subject}.", f"{subject} is here.", f"I met {subject}."))
    clauses = []
    for field in order:
        value = answer[field.key]
        shown = listed(value) if isinstance(value, list) else value
        clauses.append(field.says.format(v=shown, n="" if value else "not "))
    if rng.random() < 0.5:
        return f"{subject} {listed(clauses)}."
    said = [f"{subject} {clauses[0]}."]
    pronoun = rng.choice(("He", "She", "This person", subject))
    said += [f"{pronoun} {clause}." for clause in clauses[1:]]
    return " ".join(said)


def _wording(rng: Random, fields: list[tuple[str, str]], text: str) -> tuple[str, str]:
    """(system prompt or empty, question); an empty text asks to invent the values."""
    schema = json.dumps(schema_of(fields, rng))
    keys = listed([key for key, _ in fields])
    typed = listed([f"{key} ({kind})" for key, kind in fields])
    shape = "{" + ", ".join(f'"{key}": {kind}' for key, kind in fields) + "}"
    described = rng.choice(
        (
            f"Answer in JSON that matches this schema: {schema}",
            f"Answer with JSON that matches this schema:\n{schema}",
            f"Reply only with a JSON object that follows this JSON schema: {schema}",
            f"Use this schema: {schema}",
            f"Answer in JSON with the keys {keys}.",
            f"Answer in JSON with the keys {typed}.",
            f"Give me a JSON object with {typed}.",
            f"Give me a JSON object with {keys}.",
            f"Give me JSON with {keys}.",
            f"As JSON with the fields {keys}.",
            f"Extract {keys} as JSON.",
            f"Return a JSON object with the fields {typed}.",
            f"Return JSON like this: {shape}",
            f"Respond with JSON of the form {shape}.",
            f"Output only JSON with these keys: {', '.join(key for key, _ in fields)}.",
        )
    )
    if not text:
        task = rng.choice(
            ("Make up an example.", "Invent a person.", "Make something up.", "Give me an example.",
             "Create a sample record.", "Describe somebody.", "")
        )  # fmt: skip
    else:
        task = rng.choice(
            ("{t}", "Text: {t}", "Extract the fields from this text: {t}", 'Read: "{t}"',
             "Here is the text: {t}", "Extract: {t}", "Turn this into JSON: {t}")
        ).format(t=text)  # fmt: skip
    if rng.random() < 0.2 and task:
        return described, task
    parts = [described, task] if rng.random() < 0.5 else [task, described]
    question = rng.choice((" ", "\n", "\n\n")).join(part for part in parts if part)
    system = rng.choice(("", "", "", "You answer in JSON.", "You are a helpful assistant."))
    return system, question


def as_text(answer: dict[str, Value]) -> str:
    return json.dumps(answer, ensure_ascii=False)


def capital_record(rng: Random) -> Document:
    """A known fact as JSON."""
    country, city, continent = rng.choice(world.COUNTRIES)
    record = {"country": country.removeprefix("the "), "capital": city, "continent": continent}
    keys = rng.sample(sorted(record), rng.choice((1, 2, 2, 3)))
    if is_held_out(keys):
        keys = ["country", "capital"]
        if is_held_out(keys):
            keys = ["capital"]
    asked = rng.choice(
        ("What is the capital of {c}? Answer in JSON with the keys {k}.",
         "Answer in JSON with the keys {k}: what is the capital of {c}?",
         "Tell me about {c} in JSON with the keys {k}.",
         "Give me a JSON object with {k} for {c}.")
    )  # fmt: skip
    answer: dict[str, Value] = {key: record[key] for key in keys}
    return chat(asked.format(c=country, k=listed(keys)), as_text(answer))


def answer_record(rng: Random) -> Document:
    """A question of another kind, its answer under one key."""
    key = rng.choice(("answer", "answer", "result"))
    answer: Value
    if rng.random() < 0.6:
        a, b = arithmetic.summands(rng)
        asked, answer = arithmetic.ask_sum(rng, a, b), a + b
    else:
        country, answer, _ = rng.choice(world.COUNTRIES)
        asked = f"What is the capital of {country}?"
    form = rng.choice(
        ("{q} Answer in JSON with the key {k}.", "Answer in JSON with the key {k}: {q}",
         '{q} Reply as {{"{k}": ...}}.', "{q} Give the answer as JSON with the key {k}.")
    )  # fmt: skip
    return chat(form.format(q=asked, k=key), as_text({key: answer}))


def document(rng: Random) -> Document:
    dice = rng.random()
    if dice < 0.1:
        return capital_record(rng)
    if dice < 0.17:
        return answer_record(rng)
    asked = request(rng)
    if rng.random() < 0.88:
        return chat(asked.question, as_text(asked.answer), system=asked.system)
    again = request(rng)
    question = f"{again.system}\n{again.question}" if again.system else again.question
    return chat(
        asked.question,
        as_text(asked.answer),
        question,
        as_text(again.answer),
        system=asked.system,
    )
