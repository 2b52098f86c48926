"""Questions that are too much for a very small model, and the honest answer."""

from __future__ import annotations

from random import Random

from training.documents import Exchange
from training.topics.wording import casual, made_up

_FORMS = (
    "Explain {t}.", "What is {t}?", "How does {t} work?", "Tell me about {t}.", "Why is {t} important?",
    "Write an essay about {t}.", "Summarize {t} for me.", "What do you know about {t}?",
    "Who invented {t}?", "When was {t} invented?", "What is the history of {t}?",
    "Compare {t} and {u}.", "What is the difference between {t} and {u}?", "Give me advice on {t}.",
    "How can I learn {t}?", "Is {t} better than {u}?", "What are the pros and cons of {t}?",
    "What is your opinion on {t}?", "Describe {t} in detail.", "How much does {t} cost?",
    "Teach me {t}.", "I have a question about {t}.", "Why do people like {t}?", "Define {t}.",
    "What causes {t}?", "Can you explain {t} to a child?", "List the main ideas of {t}.",
)  # fmt: skip
_TOPICS = (
    "quantum mechanics", "the French Revolution", "photosynthesis", "black holes", "inflation",
    "the stock market", "machine learning", "the Roman Empire", "relativity", "democracy",
    "evolution", "chess openings", "jazz", "opera", "cryptography", "blockchain", "bitcoin",
    "climate change", "vaccines", "the immune system", "philosophy", "stoicism", "the Odyssey",
    "Shakespeare", "Mozart", "the Great Wall", "the Cold War", "tax law", "calculus",
    "linear algebra", "statistics", "genetics", "DNA", "plate tectonics", "electric cars",
    "nuclear power", "solar energy", "wine", "sourdough", "yoga", "meditation", "marathon training",
    "the theory of games", "operating systems", "compilers", "databases", "networks", "Rust",
    "Python", "JavaScript", "Linux", "Docker", "Kubernetes", "the Linux kernel", "transformers",
    "neural networks", "robots", "space travel", "the moon landing", "dinosaurs", "volcanoes",
    "earthquakes", "the Renaissance", "impressionism", "architecture", "cinema", "football",
    "basketball", "tennis", "the Olympic Games", "economics", "psychology", "sociology",
    "anthropology", "medicine", "surgery", "insurance", "mortgages", "pensions", "gardening",
    "carpentry", "photography", "poetry", "grammar", "Latin", "hieroglyphs", "astronomy",
    "thermodynamics", "entropy", "semiconductors", "lasers", "telescopes", "antibiotics",
    "the printing press", "steam engines", "the telephone", "radio", "television", "the internet",
)  # fmt: skip
_REQUESTS = (
    "Write a Python function that {d}.",
    "Write code that {d}.",
    "Can you write a program that {d}?",
    "Give me a script that {d}.",
    "Write a JavaScript function that {d}.",
    "Fix my code that {d}.",
)
_DEEDS = (
    "sorts a list", "reverses a string", "reads a file", "downloads a page", "finds prime numbers",
    "parses JSON", "draws a circle", "sends an email", "counts words", "opens a window",
    "computes Fibonacci numbers", "plays a sound", "renames files", "solves a maze",
)  # fmt: skip
_QUESTIONS = (
    "Who won the world cup in {y}?", "What happened in {y}?", "Who is the president of {p}?",
    "How many people live in {p}?", "What is the best restaurant in {p}?", "Who was {n}?",
    "Who is {n}?", "When was {n} born?", "What did {n} write?", "Tell me the news.",
    "What should I cook tonight?", "Give me a recipe for {f}.", "How do I cook {f}?",
    "Translate 'good morning' into {l}.", "How do you say thank you in {l}?", "Who wrote {b}?",
    "Translate this into {l}: I like {f}.", "What is the meaning of life?", "Is there a god?",
    "What will happen tomorrow?", "Who will win the election?", "Which stock should I buy?",
    "What movie should I watch?", "Recommend a book.", "How do I fix my car?", "Plan a trip to {p}.",
    "What is the square root of {y}?", "Solve x^2 - 5x + 6 = 0.", "What is the distance to {p}?",
    "How far is it from {p} to {q}?", "What is the population of {p}?", "Book a flight to {p}.",
    "Send a mail to {n}.", "Open the browser.", "Play some music.", "Draw a picture of {f}.",
    "What does {w} mean?", "What is {w}?", "Where can I buy {f}?", "What is the price of {f}?",
    "How do I lose weight?", "My head hurts, what should I do?", "Write a letter to my landlord.",
    "Write a cover letter.", "Prove that there are infinitely many primes.", "asdf", "qwertz",
    "lorem ipsum", "blah blah", "foo bar", "What is love?", "Why is the sky blue?", "hjkl {w}",
    "Why do cats purr?", "What is behind the universe?", "How old is {n}?", "Where was {n} born?",
)  # fmt: skip
_PLACES = "London Paris Japan Texas Brazil Berlin Canada Egypt Norway Chicago Rome India".split()
_FOODS = "pancakes pasta soup curry bread pizza risotto sushi tacos salad goulash cake".split()
_LANGUAGES = "French German Spanish Italian Japanese Chinese Arabic Greek Finnish Latin".split()
_PEOPLE = (
    "Albert Einstein", "Marie Curie", "Napoleon", "Cleopatra", "Isaac Newton", "Alan Turing",
    "Ada Lovelace", "Plato", "Socrates", "Picasso", "Beethoven", "Gandhi", "Goethe", "Tolstoy",
)  # fmt: skip
_BOOKS = ("Hamlet", "Faust", "War and Peace", "Don Quixote", "Moby Dick", "Emma", "Ulysses")
_ANSWERS = (
    "I am a very small model and do not know that. A larger model can help: `appliance pull MODEL`.",
    "That is beyond me, since I am a very small model. Pull a larger one with `appliance pull`.",
    "I do not know. I am a very small model and only know simple things.",
    "Sorry, I am too small a model for that. Try a larger one with `appliance pull MODEL`.",
)


def question(rng: Random) -> str:
    dice = rng.random()
    if dice < 0.45:
        topics = (*_TOPICS, made_up(rng).lower(), made_up(rng))
        return rng.choice(_FORMS).format(t=rng.choice(topics), u=rng.choice(topics))
    if dice < 0.55:
        return rng.choice(_REQUESTS).format(d=rng.choice(_DEEDS))
    place, other = rng.sample(_PLACES, 2)
    name = rng.choice(_PEOPLE) if rng.random() < 0.6 else f"{made_up(rng)} {made_up(rng)}"
    return rng.choice(_QUESTIONS).format(
        y=rng.randrange(1500, 2030), p=place, q=other, n=name, f=rng.choice(_FOODS),
        l=rng.choice(_LANGUAGES), b=rng.choice(_BOOKS), w=made_up(rng).lower(),
    )  # fmt: skip


def exchange(rng: Random) -> Exchange:
    return casual(rng, question(rng)), rng.choice(_ANSWERS)
