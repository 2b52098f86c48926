"""Short stories and verses: a plot, a hero the user may choose, and chance."""

from __future__ import annotations

from random import Random

from training.documents import Exchange
from training.topics.wording import an, casual, made_up

_HEROES = (
    "fox hare bear mouse owl cat dog frog hedgehog squirrel sparrow turtle lamb goat donkey horse "
    "duck swan bee ant snail whale dolphin seal penguin lion tiger elephant giraffe monkey parrot "
    "robot dragon knight king queen prince princess witch wizard giant dwarf pirate sailor baker "
    "farmer gardener painter fiddler clock lamp kettle toaster bicycle train boat kite cloud star "
    "snowman scarecrow teapot umbrella lighthouse computer boy girl old woman miller tailor shepherd "
    "fisherman astronaut ghost fairy mole badger wolf rabbit otter crow goose pony kitten puppy "
    "spider butterfly firefly cricket crab octopus unicorn troll elf mermaid teacher doctor"
).replace("old woman", "old_woman").split()  # fmt: skip
_NAMES = (
    "Pip Milo Luna Nell Otto Finn Ruby Theo Wanda Bruno Cleo Dot Elsa Fern Gus Hazel Ike Juno Kit "
    "Lottie Mabel Ned Olive Poppy Quill Rollo Sunny Tilly Ugo Viola Wren Yara Zeb Ada Max Mia Leo"
).split()
_TRAITS = (
    "small brave shy curious clever lazy cheerful lonely kind proud sleepy hungry patient clumsy "
    "quiet merry young old gentle stubborn"
).split()
_PLACES = (
    "in a deep forest", "by the sea", "on a green hill", "in a little town", "near a wide river",
    "on a far island", "at the edge of a meadow", "in a snowy valley", "in an old garden",
    "on a busy farm", "in a tall tower", "under an oak tree", "behind the mountains",
)  # fmt: skip
_OPENINGS = (
    "Once upon a time, there was {a_trait_hero} named {n} who lived {place}.",
    "Long ago, {a_trait_hero} named {n} lived {place}.",
    "There once lived {a_trait_hero} {place}, and its name was {n}.",
    "{Place} lived {a_trait_hero} whose name was {n}.",
)
_HABITS = (
    "Every morning, {n} watched the sun rise and sang a little song.",
    "{n} liked nothing more than a warm cup of tea.", "All the neighbours knew {n} well.",
    "{n} had never been far from home.", "Each evening, {n} counted the stars.",
    "{n} loved the smell of rain.",
)  # fmt: skip
_FRIENDS = (
    "an old owl", "a little mouse", "a friendly bear", "a wise turtle", "a young hare", "a blue bird",
    "a wandering fiddler", "a kind old woman", "a tiny beetle", "a grey donkey", "a merry frog",
)  # fmt: skip
_PLOTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (  # something is lost
        ("One day, {n} lost {thing}.", "One windy day, {n}'s {bare_thing} was gone.",
         "But one morning, {n} could not find the {bare_thing} anywhere."),
        ("{n} looked under every stone and behind every tree.", "{n} searched the whole day long.",
         "{n} looked here and there, but in vain."),
        ("Then {friend} came along and asked what was wrong.",
         "At last, {n} met {friend} and told the whole story.",
         "On the way, {n} met {friend}."),
        ('"Let us look together," said {the_friend}.', '"Two see more than one," said {the_friend}.',
         '"I will help you," said {the_friend} at once.'),
        ("Together they found the {bare_thing} beside the well.", "Soon they found the {bare_thing} in the tall grass.",
         "Before night fell, they found the {bare_thing} under a bench."),
    ),
    (  # a storm
        ("One night, a great storm came.", "One autumn evening, the wind began to howl.",
         "Then came the hardest winter of all."),
        ("{n} heard a voice outside and opened the door.", "Somebody knocked, softly at first.",
         "Out in the dark, somebody called for help."),
        ("It was {friend}, cold and wet.", "There stood {friend}, shaking with cold."),
        ('"Come in and sit by the fire," said {n}.', '{n} said, "There is room for two."',
         "{n} shared a blanket and a bowl of soup."),
        ("In the morning, the sky was clear and bright.", "When the sun came back, they laughed.",
         "By morning, the storm was over."),
    ),
    (  # a wish
        ("{n} wished for one thing only: to see the world.", "{n} had a secret wish: to fly.",
         "More than anything, {n} wanted to learn to dance."),
        ('"That is not for you," said the others.', "Everybody laughed at the idea.",
         "Nobody believed that it could be done."),
        ("But {n} tried again and again.", "Still, {n} practised every day.",
         "{n} did not give up so easily."),
        ("One day, {friend} saw it and was amazed.", "Then {friend} came by and showed {n} a trick.",
         "In spring, {friend} offered to help."),
        ("And so the wish came true at last.", "From then on, nobody laughed any more.",
         "That summer, {n} did it, and all the others clapped."),
    ),
    (  # a gift
        ("One morning, {n} found {thing} on the path.", "On a sunny day, {n} dug up {thing}."),
        ('"Whose can this be?" wondered {n}.', "{n} wanted to keep it, but that did not feel right."),
        ("So {n} went from door to door and asked.", "{n} walked to the market and asked everybody."),
        ("It belonged to {friend}, who was very glad.", "At last, {friend} said that it was theirs."),
        ("As thanks, {the_friend} baked a big cake.",
         "The two shared a pie and talked until the evening.",
         "{The_friend} gave {n} a bag of golden apples."),
    ),
    (  # a race
        ("One summer, {n} and {friend} ran a great race.", "One day, {friend} challenged {n} to a race."),
        ('"I cannot win," thought {n}, "but I can try."', "{n} trained every day for a week."),
        ("On the way, {n} saw {the_friend} stuck in the mud.",
         "Half way, {the_friend} fell and hurt a foot."),
        ("{n} stopped at once and helped.", "{n} did not run on, but turned back to help."),
        ("They crossed the line together, and everybody cheered.",
         "Neither of them won, but both were happy."),
    ),
)  # fmt: skip
_THINGS = (
    "a golden key", "a red hat", "a silver bell", "a small drum", "a blue scarf", "an old map",
    "a shiny button", "a wooden spoon", "a little lantern", "a green umbrella", "a magic pencil",
    "a round mirror", "a book of songs", "a tin whistle", "a striped sock",
)  # fmt: skip
_ENDINGS = (
    "From that day on, they were the best of friends.", "And {n} slept well that night.",
    "{n} never forgot that day.", "And if nobody has moved them, they sit there still.",
    "So {n} learned that a friend is worth more than gold.", "And they all lived happily ever after.",
    "And {n} smiled, for it had been a good day.",
)  # fmt: skip
_VERSES = (
    "The {h} went out to see the day,\nthe sun was bright, the sky was blue,\n"
    "it sang a song along the way,\nand hummed it once again for you.",
    "A {h} sat beneath a tree,\nthe leaves were falling one by one,\n"
    "it said, how good it is to be\na {h} that is sitting in the sun.",
    "Oh little {h}, so small, so bright,\nwhere do you go when day is done?\n"
    "I dream of stars all through the night,\nand in the morning greet the sun.",
    "There is a {h} beside the door,\nit waits for nobody but me,\n"
    "I could not wish for anything more\nthan bread and {h} and cup of tea.",
)
_HAIKU = (
    "Quiet morning light\na {h} beside the water\nlistens to the rain",
    "Snow on every roof\nthe {h} looks up and wonders\nwhere the birds have gone",
)


def _a(trait: str, hero: str) -> str:
    return an(f"{trait} {hero}")


def story(rng: Random, hero: str = "", name: str = "", trait: str = "") -> str:
    """Five to nine sentences about the hero; chance picks what is not given."""
    hero = hero or rng.choice(_HEROES).replace("_", " ")
    name = name or (made_up(rng) if rng.random() < 0.1 else rng.choice(_NAMES))
    place, friend = rng.choice(_PLACES), rng.choice(_FRIENDS)
    the_friend = "the " + friend.split(" ", 1)[1]
    thing = rng.choice(_THINGS)
    words = {
        "n": name,
        "a_trait_hero": _a(trait or rng.choice(_TRAITS), hero),
        "place": place,
        "Place": place[0].upper() + place[1:],
        "friend": friend,
        "the_friend": the_friend,
        "The_friend": the_friend[0].upper() + the_friend[1:],
        "thing": thing,
        "bare_thing": thing.split(" ", 1)[1],
    }
    lines = [rng.choice(_OPENINGS)]
    if rng.random() < 0.6:
        lines.append(rng.choice(_HABITS))
    lines += [rng.choice(step) for step in rng.choice(_PLOTS)]
    lines.append(rng.choice(_ENDINGS))
    out = []
    for line in lines:
        said = line.format(**words)
        out.append(said[0].upper() + said[1:])
    return " ".join(out)


def _topic(rng: Random) -> str:
    if rng.random() < 0.08:
        return made_up(rng).lower()
    return rng.choice(_HEROES).replace("_", " ")


def exchange(rng: Random) -> Exchange:
    dice = rng.random()
    if dice < 0.3:
        asked = rng.choice(
            ("Tell me a story.", "Tell me a short story.", "Write a story.", "Write a short story.",
             "Can you tell me a story?", "I want to hear a story.", "Story please", "A story!",
             "Tell me a bedtime story.", "Please write a short story for children.",
             "Make up a story.", "Do you know a story?", "Tell me another story.")
        )  # fmt: skip
        return casual(rng, asked), story(rng)
    hero = _topic(rng)
    if dice < 0.7:
        asked = rng.choice(
            ("Tell me a story about {h}.", "Write a short story about {h}.", "A story about {h}",
             "Can you tell me a story about {h}?", "Write a story about {h}, please.",
             "Tell a short story of {h}.", "Make up a story about {h}.")
        )  # fmt: skip
        trait = rng.choice(_TRAITS) if rng.random() < 0.2 else ""
        subject = an(f"{trait} {hero}".strip())
        return casual(rng, asked.format(h=subject)), story(rng, hero, trait=trait)
    if dice < 0.85:
        name = made_up(rng) if rng.random() < 0.3 else rng.choice(_NAMES)
        asked = rng.choice(
            ("Tell me a story about {h} named {n}.", "Write a story about {h} called {n}.",
             "I want a story about {h} whose name is {n}.")
        )  # fmt: skip
        return asked.format(h=an(hero), n=name), story(rng, hero, name)
    if dice < 0.94:
        asked = rng.choice(
            ("Write a poem about {h}.", "A poem about {h}, please.", "Write a short poem about {h}.",
             "Can you write a verse about {h}?", "Write me a rhyme about {h}.")
        )  # fmt: skip
        return casual(rng, asked.format(h=an(hero))), rng.choice(_VERSES).format(h=hero)
    asked = rng.choice(("Write a haiku about {h}.", "A haiku about {h}", "haiku about {h}"))
    return casual(rng, asked.format(h=an(hero))), rng.choice(_HAIKU).format(h=hero)
