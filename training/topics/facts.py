"""Questions about the tables of `world.py`, and their answers."""

from __future__ import annotations

from random import Random

from training.documents import Exchange
from training.topics import world
from training.topics.wording import casual, listed, number_words


def _upper(said: str) -> str:
    return said[0].upper() + said[1:]


def capital(rng: Random) -> Exchange:
    country, city, _ = rng.choice(world.COUNTRIES)
    asked = rng.choice(
        ("What is the capital of {c}?", "what's the capital of {c}?", "What's {c}'s capital?",
         "Which city is the capital of {c}?", "Capital of {c}?", "The capital of {c}?",
         "Name the capital of {c}.", "Tell me the capital of {c}.", "What is {c}'s capital city?",
         "Do you know the capital of {c}?", "What city is the capital of {c}?",
         "{C} has which capital?", "What is the capital city of {c}?")
    ).format(c=country, C=_upper(country))  # fmt: skip
    full = f"The capital of {country} is {city}"
    answer = full if full.endswith(".") else full + "."
    if rng.random() < 0.15:
        answer = city if city.endswith(".") else city + "."
    return casual(rng, asked), answer


def country_of(rng: Random) -> Exchange:
    country, city, _ = rng.choice(world.COUNTRIES)
    asked = rng.choice(
        ("Which country has the capital {t}?", "{t} is the capital of which country?",
         "What country is {t} the capital of?", "Of which country is {t} the capital?",
         "Which country's capital is {t}?", "What is {t} the capital of?",
         "In which country is {t}?", "Where is {t}?", "What country is {t} in?")
    ).format(t=city)  # fmt: skip
    if "capital" in asked:
        return casual(rng, asked), f"{city} is the capital of {country}."
    return casual(rng, asked), f"{city} is in {country}. It is the capital."


def is_capital(rng: Random) -> Exchange:
    country, city, _ = rng.choice(world.COUNTRIES)
    said = city if rng.random() < 0.5 else rng.choice(world.CAPITALS)
    asked = rng.choice(("Is {t} the capital of {c}?", "Is the capital of {c} {t}?"))
    full = f"the capital of {country} is {city}"
    dot = "" if full.endswith(".") else "."
    head = "Yes, " if said == city else "No, "
    return casual(rng, asked.format(t=said, c=country)), head + full + dot


def continent(rng: Random) -> Exchange:
    country, _, where = rng.choice(world.COUNTRIES)
    asked = rng.choice(
        ("On which continent is {c}?", "Which continent is {c} on?", "What continent is {c} in?",
         "Where is {c}?", "Where in the world is {c}?")
    )  # fmt: skip
    verb = "are" if country in ("the Netherlands", "the Philippines", "the Bahamas") else "is"
    asked = asked.replace(" is ", f" {verb} ")
    return casual(rng, asked.format(c=country)), f"{_upper(country)} {verb} in {where}."


def calendar(rng: Random) -> Exchange:
    names, word = (world.DAYS, "day") if rng.random() < 0.55 else (world.MONTHS, "month")
    i = rng.randrange(len(names))
    name, after, before = names[i], names[(i + 1) % len(names)], names[i - 1]
    dice = rng.random()
    if dice < 0.35:
        asked = rng.choice(
            ("What {w} comes after {n}?", "Which {w} follows {n}?", "What comes after {n}?",
             "What is the {w} after {n}?", "Name the {w} after {n}.", "What's after {n}?")
        )  # fmt: skip
        return casual(rng, asked.format(w=word, n=name)), f"{after} comes after {name}."
    if dice < 0.6:
        asked = rng.choice(
            ("What {w} comes before {n}?", "Which {w} is before {n}?", "What comes before {n}?",
             "What is the {w} before {n}?", "Name the {w} before {n}.", "What's before {n}?")
        )  # fmt: skip
        return casual(rng, asked.format(w=word, n=name)), f"{before} comes before {name}."
    if dice < 0.75:
        asked = rng.choice(
            ("List the {w}s.", "What are the {w}s of the {u}?", "Name all {w}s of the {u}.",
             "Name the {w}s of the {u}.", "Can you list the {w}s of the {u}?")
        )  # fmt: skip
        unit = "week" if word == "day" else "year"
        return (
            casual(rng, asked.format(w=word, u=unit)),
            f"The {word}s of the {unit} are {listed(list(names))}.",
        )
    if word == "day":
        if dice < 0.88:
            return casual(
                rng, f"If today is {name}, what day is tomorrow?"
            ), f"If today is {name}, tomorrow is {after}."
        return casual(
            rng, f"If today is {name}, what day was yesterday?"
        ), f"If today is {name}, yesterday was {before}."
    if dice < 0.88:
        asked = rng.choice(("How many days has {n}?", "How many days are there in {n}?"))
        extra = ", and 29 in a leap year" if name == "February" else ""
        return casual(
            rng, asked.format(n=name)
        ), f"{name} has {world.MONTH_LENGTHS[i]} days{extra}."
    ordinals = (
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
    )
    asked = rng.choice(("What is the {o} month of the year?", "Which month is the {o}?"))
    return casual(
        rng, asked.format(o=ordinals[i])
    ), f"The {ordinals[i]} month of the year is {name}."


_QUANTITIES: tuple[tuple[str, str], ...] = (
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many days are in a year?", "There are 365 days in a year, and 366 in a leap year."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many seconds are in a minute?", "There are 60 seconds in a minute."),
    ("How many weeks are in a year?", "There are 52 weeks in a year."),
    ("How many letters are in the alphabet?", "The English alphabet has 26 letters."),
    ("How many continents are there?", "There are seven continents."),
    ("How many planets are there?", "There are eight planets in the solar system."),
    ("How many seasons are there?", "There are four seasons: spring, summer, autumn and winter."),
    ("What are the four seasons?", "The four seasons are spring, summer, autumn and winter."),
    ("How many colors are in the rainbow?", "The rainbow has seven colours."),
    ("What are the colors of the rainbow?", f"They are {listed(world.RAINBOW)}."),
    ("List the colours of the rainbow.", f"They are {listed(world.RAINBOW)}."),
    ("What are the primary colors?", "The primary colours are red, yellow and blue."),
    ("Name the planets.", f"The planets are {listed(world.PLANETS)}."),
    ("List the planets of the solar system.", f"The planets are {listed(world.PLANETS)}."),
    ("Which planet is the largest?", "Jupiter is the largest planet."),
    ("Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    ("Which planet is the red planet?", "Mars is called the red planet."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What is the biggest animal?", "The blue whale is the biggest animal."),
    ("What is the fastest land animal?", "The cheetah is the fastest land animal."),
    ("What is the tallest animal?", "The giraffe is the tallest animal."),
    ("What is the largest ocean?", "The Pacific is the largest ocean."),
    ("What is the highest mountain?", "Mount Everest is the highest mountain on Earth."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What is the chemical formula of water?", "The formula of water is H2O."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give?", "Cows give milk."),
    ("What do plants need to grow?", "Plants need water, light, air and soil."),
    ("How many legs has a table?", "A table usually has four legs."),
    ("How many fingers does a hand have?", "A hand has five fingers."),
    ("How many wheels has a bicycle?", "A bicycle has two wheels."),
    ("How many wheels does a car have?", "A car has four wheels."),
    ("How many sides does a circle have?", "A circle has no sides. It is round."),
    ("What language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
    ("What language do people speak in France?", "People speak French in France."),
    ("What language is spoken in Germany?", "German is spoken in Germany."),
    ("What language do people speak in Spain?", "People speak Spanish in Spain."),
    ("What language is spoken in Japan?", "Japanese is spoken in Japan."),
    ("What do you call frozen water?", "Frozen water is called ice."),
    ("Is the sun a star?", "Yes, the sun is a star."),
    ("Is the earth flat?", "No, the Earth is round."),
    ("Is a whale a fish?", "No, a whale is a mammal."),
    ("Is a tomato a fruit?", "Yes, a tomato is a fruit."),
    ("Can penguins fly?", "No, penguins cannot fly, but they swim very well."),
    ("Can fish breathe under water?", "Yes, fish breathe under water with their gills."),
    ("Where does the sun rise?", "The sun rises in the east."),
    ("Where does the sun set?", "The sun sets in the west."),
)


def quantity(rng: Random) -> Exchange:
    asked, answer = rng.choice(_QUANTITIES)
    asked = asked.replace("are in a ", rng.choice(("are in a ", "does a ")))
    if "does a " in asked and asked.startswith("How many") and not asked.endswith("have?"):
        asked = asked.rstrip("?") + " have?"
    return casual(rng, asked), answer


def colour(rng: Random) -> Exchange:
    word = rng.choice(("colour", "color"))
    if rng.random() < 0.2:
        (a, b), mixed = rng.choice(tuple(world.MIXTURES.items()))
        if rng.random() < 0.5:
            a, b = b, a
        asked = rng.choice(
            (f"What {word} do you get if you mix {a} and {b}?", f"What do {a} and {b} make?",
             f"Mix {a} and {b}. What {word} is it?")
        )  # fmt: skip
        return casual(rng, asked), f"{_upper(a)} and {b} make {mixed}."
    thing, shade = rng.choice(tuple(world.COLOURS.items()))
    asked = rng.choice(
        (f"What {word} is {thing}?", f"Which {word} is {thing}?", f"What {word} has {thing}?",
         f"Tell me the {word} of {thing}.", f"What is the {word} of {thing}?")
    )  # fmt: skip
    return casual(rng, asked), f"{_upper(thing)} is {shade}."


def opposite(rng: Random) -> Exchange:
    pair = rng.choice(world.OPPOSITES)
    a, b = pair if rng.random() < 0.5 or pair == ("heavy", "light") else pair[::-1]
    quote = rng.choice(("", '"'))
    asked = rng.choice(
        ("What is the opposite of {a}?", "Opposite of {a}?", "What's the opposite of {a}?",
         "Tell me the opposite of {a}.", "Which word is the opposite of {a}?",
         "Give me an antonym of {a}.")
    )  # fmt: skip
    return casual(rng, asked.format(a=f"{quote}{a}{quote}")), f"The opposite of {a} is {b}."


def animal(rng: Random) -> Exchange:
    name, (sound, legs, young, home) = rng.choice(tuple(world.ANIMALS.items()))
    one = ("an " if name[0] in "aeiou" else "a ") + name
    kind = rng.randrange(4)
    if kind == 0:
        asked = rng.choice(
            (f"What sound does {one} make?", f"What does {one} say?", f"How does {one} sound?")
        )
        return casual(rng, asked), f"{_upper(one)} {sound}."
    if kind == 1:
        asked = rng.choice((f"How many legs does {one} have?", f"How many legs has {one}?"))
        extra = " It has eight arms." if name == "octopus" else ""
        word = "no" if legs == 0 else number_words(legs)
        return casual(rng, asked), f"{_upper(one)} has {word} legs.{extra}"
    if kind == 2:
        asked = rng.choice(
            (f"What is a baby {name} called?", f"What do you call a young {name}?",
             f"What is the name for a baby {name}?")
        )  # fmt: skip
        article = "an " if young[0] in "aeiou" else "a "
        return casual(rng, asked), f"A young {name} is called {article}{young}."
    asked = rng.choice((f"Where does {one} live?", f"Where do you find {one}?"))
    return casual(rng, asked), f"{_upper(one)} lives {home}."


def letters(rng: Random) -> Exchange:
    dice = rng.random()
    i = rng.randrange(1, 25)
    if dice < 0.25:
        return casual(
            rng, f"What letter comes after {world.ALPHABET[i]}?"
        ), f"{world.ALPHABET[i + 1]} comes after {world.ALPHABET[i]}."
    if dice < 0.4:
        return casual(
            rng, f"What letter comes before {world.ALPHABET[i]}?"
        ), f"{world.ALPHABET[i - 1]} comes before {world.ALPHABET[i]}."
    if dice < 0.5:
        asked = rng.choice(("Say the alphabet.", "Recite the alphabet.", "What is the alphabet?"))
        return casual(rng, asked), " ".join(world.ALPHABET)
    if dice < 0.65:
        name, sides = rng.choice(tuple(world.SHAPES.items()))
        one = ("an " if name[0] in "aeiou" else "a ") + name
        asked = rng.choice((f"How many sides does {one} have?", f"How many sides has {one}?"))
        return casual(rng, asked), f"{_upper(one)} has {number_words(sides)} sides."
    word = rng.choice(world.SPELLED)
    asked = rng.choice(("How do you spell {w}?", "Spell the word {w}.", "Spell {w}, please."))
    spelled = "-".join(word.upper())
    return casual(rng, asked.format(w=word)), f"{spelled}."


def exchange(rng: Random) -> Exchange:
    dice = rng.random()
    if dice < 0.3:
        return capital(rng)
    if dice < 0.43:
        return country_of(rng)
    return rng.choice(
        (is_capital, continent, calendar, calendar, quantity, colour, opposite, animal, animal,
         letters)
    )(rng)  # fmt: skip


def sentence(rng: Random) -> str:
    """One fact without a question, for plain text."""
    dice = rng.random()
    if dice < 0.6:
        country, city, where = rng.choice(world.COUNTRIES)
        stop = "" if city.endswith(".") else "."
        if rng.random() < 0.7:
            return f"The capital of {country} is {city}{stop}"
        return f"{city} is the capital of {country}, in {where}."
    return rng.choice((quantity, colour, opposite, animal, calendar))(rng)[1]
