"""How a user words things: case, courtesy, slips of the finger; numbers in words; made-up names."""

from __future__ import annotations

from random import Random

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_OPENERS = (
    "please ", "hey, ", "hi, ", "hello, ", "ok, ", "so ", "and ", "now ", "can you tell me, ",
    "I wonder, ", "quick question: ", "question: ", "tell me, ", "well, ", "dear model, ",
)  # fmt: skip
_CLOSERS = (" please", " thanks", ", please", " please?", " thank you", " ok?", " :)", "!", "??")
_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl sh st th tr".split()
_VOWELS = "a e i o u ai ea ou io".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "m", "x", "nd", "rk", "th"]


def number_words(n: int) -> str:
    """0 ≤ n ≤ 999 in words."""
    if n < 20:
        return _ONES[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(n, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {number_words(rest)}" if rest else "")


def made_up(rng: Random) -> str:
    """A name nobody has, so that only copying can get it right."""
    parts = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return "".join(parts).capitalize()


def an(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def listed(items: list[str], word: str = "and") -> str:
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + f" {word} " + items[-1]


def casual(rng: Random, said: str) -> str:
    """The same request as another person, in another hurry, would type it."""
    dice = rng.random()
    if dice < 0.45:
        return said
    if rng.random() < 0.3 and said[-1] in "?.!":
        said = said[:-1].rstrip()
    if rng.random() < 0.12:
        opener = rng.choice(_OPENERS)
        said = opener + (said[0].lower() + said[1:] if said[:2] != "I " else said)
        if rng.random() < 0.5:
            said = said[0].upper() + said[1:]
    elif rng.random() < 0.1:
        said = said.rstrip("?.!") + rng.choice(_CLOSERS)
    if rng.random() < 0.4:
        said = said.lower()
    elif rng.random() < 0.03:
        said = said.upper()
    if rng.random() < 0.06:
        said = _slip(rng, said)
    return said


def _slip(rng: Random, said: str) -> str:
    places = [i for i in range(1, len(said) - 1) if said[i - 1 : i + 2].isalpha()]
    if not places:
        return said
    i = rng.choice(places)
    kind = rng.randrange(3)
    if kind == 0:
        return said[:i] + said[i + 1 :]
    if kind == 1:
        return said[:i] + said[i + 1] + said[i] + said[i + 2 :]
    return said[:i] + said[i] + said[i:]
