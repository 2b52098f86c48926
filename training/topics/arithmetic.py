"""Numbers: sums, differences, products, comparisons, counting.

One tenth of all sums of two numbers from 0 to 99 is held out: never written here, in any order
or wording, nor as the difference that would give it away.
"""

from __future__ import annotations

import hashlib
from random import Random

from training.documents import Exchange
from training.topics.wording import casual, listed, number_words

LIMIT = 100


def _order(pair: tuple[int, int]) -> str:
    return hashlib.sha256(f"{pair[0]}+{pair[1]}".encode()).hexdigest()


_PAIRS = [(a, b) for a in range(LIMIT) for b in range(a, LIMIT)]
HELD_OUT: frozenset[tuple[int, int]] = frozenset(sorted(_PAIRS, key=_order)[: len(_PAIRS) // 10])
"""Held-out sums as (smaller, larger)."""

SUM_FORMS = (
    "What is {a} + {b}?", "what is {a} + {b}", "What's {a} + {b}?", "What is {a} plus {b}?",
    "what's {a} plus {b}?", "{a} + {b}", "{a}+{b}", "{a} + {b} =", "{a}+{b}=", "{a} + {b} = ?",
    "{a} plus {b}", "Calculate {a} + {b}.", "Compute {a}+{b}", "Add {a} and {b}.",
    "Add {b} to {a}.", "What is the sum of {a} and {b}?", "Sum of {a} and {b}?",
    "How much is {a} + {b}?", "How much is {a} plus {b}?", "How much are {a} and {b} together?",
    "What do you get if you add {a} and {b}?", "What does {a} + {b} equal?", "Solve {a} + {b}.",
    "Tell me {a} plus {b}.", "Can you add {a} and {b}?", "Please add {a} + {b}.",
    "I need {a} + {b}.", "Do you know what {a} + {b} is?", "What is {a} and {b} added together?",
    "What is the total of {a} and {b}?", "Give me the result of {a} + {b}.", "Work out {a}+{b}.",
)  # fmt: skip
SUM_STORIES = (
    "I have {a} {things} and get {b} more. How many {things} do I have?",
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "There are {a} red {things} and {b} blue {things}. How many are there in all?",
    "{name} found {a} {things} on Monday and {b} on Tuesday. How many is that together?",
    "One box holds {a} {things}, another holds {b}. How many {things} are there in total?",
)
_THINGS = (
    "apples books coins stones shells pens marbles stamps cards cookies eggs flowers nuts balls "
    "pears cups keys toys leaves buttons"
).split()
_NAMES = "Ada Ben Mia Tom Zoe Sam Lea Max Eva Leo Ivy Dan Nora Finn Ruth Omar Lin Kai".split()
_DIFFERENCE_FORMS = (
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}", "{a}-{b}=", "{a} - {b} =",
    "What is {a} minus {b}?", "what's {a} minus {b}?", "Subtract {b} from {a}.",
    "Calculate {a} - {b}.", "How much is {a} - {b}?", "What is the difference of {a} and {b}?",
    "Take {b} away from {a}.", "How much is {a} minus {b}?", "{a} minus {b}", "Compute {a} - {b}",
)  # fmt: skip
_PRODUCT_FORMS = (
    "What is {a} times {b}?", "What is {a} * {b}?", "{a}*{b}", "{a} * {b}", "{a} x {b}", "{a}*{b}=",
    "Multiply {a} by {b}.", "What is the product of {a} and {b}?", "How much is {a} times {b}?",
    "What is {a} x {b}?", "Calculate {a} * {b}.", "{a} times {b}", "What's {a} times {b}?",
)  # fmt: skip


def is_held_out(a: int, b: int) -> bool:
    return (min(a, b), max(a, b)) in HELD_OUT


def summands(rng: Random) -> tuple[int, int]:
    """Two numbers from 0 to 99 whose sum may be learned."""
    while True:
        top = rng.choice((10, 20, LIMIT, LIMIT, LIMIT, LIMIT, LIMIT, LIMIT))
        a, b = rng.randrange(top), rng.randrange(LIMIT if rng.random() < 0.7 else top)
        if rng.random() < 0.5:
            a, b = b, a
        if not is_held_out(a, b):
            return a, b


def minuends(rng: Random) -> tuple[int, int]:
    """a, b from 0 to 99 whose difference gives no held-out sum away."""
    while True:
        a, b = rng.randrange(LIMIT), rng.randrange(LIMIT)
        if a < b and rng.random() < 0.85:
            a, b = b, a
        if not is_held_out(min(a, b), abs(a - b)):
            return a, b


def ask_sum(rng: Random, a: int, b: int) -> str:
    """One wording of the question, digits or words."""
    if rng.random() < 0.12:
        form = rng.choice(SUM_STORIES)
        return form.format(a=a, b=b, things=rng.choice(_THINGS), name=rng.choice(_NAMES))
    form = rng.choice(SUM_FORMS)
    if rng.random() < 0.12 and "+" not in form:
        return form.format(a=number_words(a), b=number_words(b))
    return form.format(a=a, b=b)


def _answer(rng: Random, asked: str, a: int, sign: str, b: int, result: int) -> str:
    if asked.endswith("="):
        return str(result)
    dice = rng.random()
    if dice < 0.2 and "many" not in asked:
        return str(result)
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    if dice < 0.85:
        return f"{a} {sign} {b} = {result}."
    return f"{a} {word} {b} is {result}."


def addition(rng: Random) -> Exchange:
    a, b = summands(rng)
    asked = ask_sum(rng, a, b)
    return casual(rng, asked), _answer(rng, asked, a, "+", b, a + b)


def subtraction(rng: Random) -> Exchange:
    a, b = minuends(rng)
    form = rng.choice(_DIFFERENCE_FORMS)
    if a >= b and rng.random() < 0.1:
        form = rng.choice(
            (
                "{n} has {a} {t} and gives away {b}. How many {t} are left?",
                "There were {a} {t}. {n} took {b}. How many {t} are there now?",
                "I had {a} {t} and lost {b}. How many {t} do I have left?",
            )
        )
    asked = form.format(a=a, b=b, n=rng.choice(_NAMES), t=rng.choice(_THINGS))
    return casual(rng, asked), _answer(rng, asked, a, "-", b, a - b)


def product(rng: Random) -> Exchange:
    a, b = rng.randrange(13), rng.randrange(13)
    if rng.random() < 0.25:
        a, b = rng.randrange(LIMIT), rng.randrange(11)
    if rng.random() < 0.5:
        a, b = b, a
    asked = rng.choice(_PRODUCT_FORMS).format(a=a, b=b)
    return casual(rng, asked), _answer(rng, asked, a, "*", b, a * b)


def quotient(rng: Random) -> Exchange:
    b, result = rng.randrange(1, 13), rng.randrange(13)
    a = b * result
    form = rng.choice(
        ("What is {a} divided by {b}?", "{a} / {b}", "{a}/{b}=", "Divide {a} by {b}.",
         "What is {a} / {b}?", "How much is {a} divided by {b}?")
    )  # fmt: skip
    answer = str(result) if form.endswith("=") else f"{a} / {b} = {result}."
    return casual(rng, form.format(a=a, b=b)), answer


def comparison(rng: Random) -> Exchange:
    a, b = rng.sample(range(rng.choice((20, 100, 1000))), 2)
    larger = rng.random() < 0.6
    word = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "less"))
    asked = rng.choice(("Which is {w}, {a} or {b}?", "What number is {w}: {a} or {b}?"))
    if rng.random() < 0.3:
        yes = (a > b) == larger
        word = "larger" if larger else "smaller"
        truth = f"{a} is {'larger' if a > b else 'smaller'} than {b}."
        return casual(rng, f"Is {a} {word} than {b}?"), f"{'Yes' if yes else 'No'}, {truth}"
    best = max(a, b) if larger else min(a, b)
    other = a + b - best
    return casual(rng, asked.format(w=word, a=a, b=b)), f"{best} is {word} than {other}."


def parity(rng: Random) -> Exchange:
    n = rng.randrange(rng.choice((20, 100)))
    kind = "odd" if n % 2 else "even"
    asked = rng.choice(("Is {n} even or odd?", "Is {n} odd or even?", "Is the number {n} even?"))
    head = ""
    if asked.endswith("even?"):
        head = "No, " if n % 2 else "Yes, "
    return casual(rng, asked.format(n=n)), f"{head}{n} is {kind}."


def counting(rng: Random) -> Exchange:
    if rng.random() < 0.3:
        n = rng.randrange(1, 100)
        if rng.random() < 0.5:
            return casual(rng, f"What number comes after {n}?"), f"After {n} comes {n + 1}."
        return casual(rng, f"What number comes before {n}?"), f"Before {n} comes {n - 1}."
    if rng.random() < 0.25:
        n = rng.choice((3, 5, 10))
        down = listed([str(i) for i in range(n, 0, -1)])
        return casual(rng, f"Count down from {n}."), down + "."
    first = 1 if rng.random() < 0.6 else rng.randrange(60)
    last = first + rng.choice((2, 4, 9, 9, rng.randrange(2, 20)))
    if first == 1 and rng.random() < 0.7:
        asked = rng.choice(("Count to {l}.", "Can you count to {l}?", "Please count up to {l}."))
    else:
        asked = rng.choice(("Count from {f} to {l}.", "List the numbers from {f} to {l}."))
    numbers = ", ".join(str(i) for i in range(first, last + 1))
    return casual(rng, asked.format(f=first, l=last)), numbers + "."


def in_words(rng: Random) -> Exchange:
    n = rng.randrange(rng.choice((20, 100, 100, 1000)))
    if rng.random() < 0.5:
        asked = rng.choice(("How do you write {n} in words?", "Write {n} in words.", "Spell {n}."))
        return casual(rng, asked.format(n=n)), number_words(n).capitalize() + "."
    words = number_words(n)
    asked = rng.choice(("Write {w} in digits.", "What number is {w}?", "{w} in digits?"))
    return casual(rng, asked.format(w=words)), f"{n}."


def too_large(rng: Random) -> Exchange:
    """Sums beyond two digits are refused rather than guessed."""
    sign = rng.choice("+-*")
    a, b = rng.randrange(100, 10000), rng.randrange(1, 1000)
    if rng.random() < 0.4:
        a, b = b, a
    forms = {"+": SUM_FORMS, "-": _DIFFERENCE_FORMS, "*": _PRODUCT_FORMS}[sign]
    answer = rng.choice(
        (
            "That is too large for me. I only learned numbers of up to two digits.",
            "I am a very small model and only calculate with numbers below 100.",
        )
    )
    return casual(rng, rng.choice(forms).format(a=a, b=b)), answer


def exchange(rng: Random) -> Exchange:
    """Any of the above; every second one is a sum."""
    dice = rng.random()
    if dice < 0.55:
        return addition(rng)
    if dice < 0.75:
        return subtraction(rng)
    if dice < 0.87:
        return product(rng)
    return rng.choice((quotient, comparison, parity, counting, in_words, too_large))(rng)


def sheet(rng: Random) -> str:
    """Lines of worked sums, as plain text."""
    spaced = rng.random() < 0.6
    lines = []
    for _ in range(rng.randrange(1, 16)):
        dice = rng.random()
        if dice < 0.65:
            a, b = summands(rng)
            sign, result = "+", a + b
        elif dice < 0.85:
            a, b = minuends(rng)
            sign, result = "-", a - b
        else:
            a, b = rng.randrange(13), rng.randrange(13)
            sign, result = "*", a * b
        lines.append(f"{a} {sign} {b} = {result}" if spaced else f"{a}{sign}{b}={result}")
    return "\n".join(lines)
