"""Chats in which tools are offered: called when they fit, left alone when they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from training.documents import Document, Exchange, Message, ToolCall
from training.topics import arithmetic, facts, talk, world
from training.topics.wording import casual, made_up

_CITIES = (
    *world.CAPITALS, "New York", "Chicago", "San Francisco", "Sydney", "Munich", "Hamburg", "Milan",
    "Barcelona", "Lyon", "Geneva", "Zurich", "Toronto", "Mumbai", "Shanghai", "Osaka", "Seattle",
    "Boston", "Bogotá", "São Paulo", "Istanbul", "Paris", "London", "Berlin", "Tokyo",
)  # fmt: skip
_SKIES = "sunny cloudy rainy windy foggy snowy stormy clear".split()
_NAMES = "Ada Ben Clara David Emma Felix Grace Hugo Ivy Jack Maria Noah Olga Paul Rosa Tom".split()
_MONEY = "EUR USD GBP JPY CHF CAD AUD".split()
_ROOMS = ("kitchen", "bedroom", "living room", "office", "garden", "hall", "bathroom", "garage")
_SUBJECTS = (
    "black holes", "pancake recipes", "the moon landing", "cheap flights", "python tutorials",
    "electric cars", "jazz clubs", "good books", "opening hours of the museum", "local news",
)  # fmt: skip
_MESSAGES = ("I am late", "see you at noon", "happy birthday", "call me back", "dinner is ready")


def _city(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.2 else rng.choice(_CITIES)


def _person(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.3 else rng.choice(_NAMES)


@dataclass(frozen=True)
class Parameter:
    names: tuple[str, ...]
    kind: str
    text: tuple[str, ...]
    """Descriptions; an empty one is left out."""


@dataclass(frozen=True)
class Tool:
    names: tuple[str, ...]
    text: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    values: Callable[[Random], tuple[Any, ...]]
    """One value a parameter."""
    asks: tuple[str, ...]
    """{0}, {1}… are the values."""
    result: Callable[[Random, tuple[Any, ...]], tuple[dict[str, Any], str]]
    """(what the tool returns, the answer in words)"""


_PLACE = Parameter(
    ("city", "location", "place", "city_name"),
    "string",
    ("The city", "City name", "Name of the city", "The city, e.g. Paris", "",
     "City and country e.g. Bogotá, Colombia", "The city and state, e.g. San Francisco, CA"),
)  # fmt: skip


def _weather(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    degrees, sky = rng.randrange(-10, 40), rng.choice(_SKIES)
    sky_key = rng.choice(("condition", "sky", "weather"))
    degree_key = rng.choice(("temperature", "temp", "degrees", "temperature_c"))
    result: dict[str, Any] = {degree_key: degrees, sky_key: sky}
    if rng.random() < 0.4:
        result = {"city": values[0], **result}
    if rng.random() < 0.3:
        result["unit"] = "celsius"
    return result, f"It is {sky} in {values[0]}, with {degrees} degrees."


def _clock(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    now = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    return {rng.choice(("time", "local_time")): now}, f"It is {now} in {values[0]}."


def _expression(rng: Random) -> tuple[Any, ...]:
    sign = rng.choice(("+", "-", "*", "/"))
    a, b = rng.randrange(100, 10000), rng.randrange(2, 1000)
    return (f"{a} {sign} {b}",) if rng.random() < 0.7 else (f"{a}{sign}{b}",)


def _calculated(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    # The tool's word is what counts, so any number teaches to repeat it.
    number = rng.randrange(1, 1000000)
    return {"result": number}, f"{values[0]} = {number}."


def _searched(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    count = rng.randrange(2, 90)
    return {"results": count}, f"I found {count} results for {values[0]}."


def _timed(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    return {"status": "ok"}, f"The timer is set for {values[0]} minutes."


def _sent(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    return {"status": rng.choice(("sent", "ok"))}, f"Your message to {values[0]} was sent."


def _converted(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    amount = rng.randrange(1, 2000)
    return {"amount": amount}, f"{values[0]} {values[1]} are {amount} {values[2]}."


def _lit(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    return {"status": "ok"}, f"The light in the {values[0]} is now {values[1]}."


def _priced(rng: Random, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
    price = rng.randrange(4, 4000) / 4
    return {"price": price}, f"{values[0]} is at {price} dollars."


TOOLS: tuple[Tool, ...] = (
    Tool(
        ("get_weather", "get_current_weather", "weather", "fetch_weather", "weather_lookup"),
        ("Get the weather in a city.", "Get current temperature for a given location.",
         "Returns the current weather.", "Get the current weather in a given location"),
        (_PLACE,),
        lambda rng: (_city(rng),),
        ("What is the weather in {0}?", "What's the weather like in {0}?", "Weather in {0}?",
         "How is the weather in {0} today?", "Is it raining in {0}?", "How warm is it in {0}?",
         "What is the weather like in {0} today?", "Tell me the weather in {0}.",
         "What's the temperature in {0}?", "Do I need an umbrella in {0}?", "Is it sunny in {0}?"),
        _weather,
    ),
    Tool(
        ("get_time", "get_current_time", "time_in", "local_time", "clock"),
        ("Get the time in a city.", "Returns the local time of a place.", "Get the current time."),
        (_PLACE,),
        lambda rng: (_city(rng),),
        ("What time is it in {0}?", "What is the time in {0}?", "Tell me the time in {0}.",
         "How late is it in {0}?", "Time in {0}?", "What's the local time in {0}?"),
        _clock,
    ),
    Tool(
        ("calculator", "calculate", "compute", "evaluate", "math"),
        ("Evaluate an arithmetic expression.", "A calculator.", "Calculates an expression."),
        (Parameter(("expression", "formula", "input"), "string",
                   ("The expression, e.g. 120 * 7", "What to calculate", "")),),
        _expression,
        ("What is {0}?", "Calculate {0}.", "Compute {0}", "How much is {0}?", "{0}", "{0} = ?",
         "Please work out {0}."),
        _calculated,
    ),
    Tool(
        ("search", "web_search", "search_web", "find_pages"),
        ("Search the web.", "Looks up pages on the web.", "Search for information."),
        (Parameter(("query", "q", "text"), "string", ("The query", "What to look for", "")),),
        lambda rng: (rng.choice((*_SUBJECTS, made_up(rng).lower())),),
        ("Search for {0}.", "Look up {0}.", "Find pages about {0}.", "Search the web for {0}",
         "Please search {0}."),
        _searched,
    ),
    Tool(
        ("set_timer", "start_timer", "timer"),
        ("Set a timer.", "Starts a timer for some minutes."),
        (Parameter(("minutes", "duration"), "integer", ("Minutes", "How many minutes", "")),),
        lambda rng: (rng.randrange(2, 100),),
        ("Set a timer for {0} minutes.", "Start a timer of {0} minutes.", "Timer {0} minutes",
         "Wake me in {0} minutes.", "Remind me in {0} minutes."),
        _timed,
    ),
    Tool(
        ("send_message", "send_sms", "send_email", "message"),
        ("Send a message to somebody.", "Sends a text to a person."),
        (Parameter(("to", "recipient", "person"), "string", ("Who gets it", "The recipient", "")),
         Parameter(("text", "body", "content"), "string", ("The text", "What to say", ""))),
        lambda rng: (_person(rng), rng.choice(_MESSAGES)),
        ('Send {0} the message "{1}".', 'Tell {0}: "{1}"', "Send a message to {0}: {1}",
         "Write to {0}: {1}"),
        _sent,
    ),
    Tool(
        ("convert_currency", "convert", "exchange_rate"),
        ("Convert money.", "Converts an amount from one currency to another."),
        (Parameter(("amount", "value"), "integer", ("The amount", "")),
         Parameter(("from_currency", "source", "base"), "string", ("The currency it is in", "")),
         Parameter(("to_currency", "target"), "string", ("The currency wanted", ""))),
        lambda rng: (rng.randrange(1, 1000), *rng.sample(_MONEY, 2)),
        ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "{0} {1} in {2}?",
         "What are {0} {1} in {2}?"),
        _converted,
    ),
    Tool(
        ("set_light", "switch_light", "light", "control_light"),
        ("Switch a light on or off.", "Controls the lights of the house."),
        (Parameter(("room", "area"), "string", ("The room", "")),
         Parameter(("state", "value"), "string", ("on or off", ""))),
        lambda rng: (rng.choice(_ROOMS), rng.choice(("on", "off"))),
        ("Turn {1} the light in the {0}.", "Switch the {0} light {1}.",
         "Please turn the light in the {0} {1}."),
        _lit,
    ),
    Tool(
        ("get_stock_price", "stock_price", "get_price", "quote"),
        ("Get the price of a stock.", "Returns the current stock price."),
        (Parameter(("symbol", "ticker", "name"), "string", ("The symbol", "Ticker symbol", "")),),
        lambda rng: ("".join(rng.choice(world.ALPHABET) for _ in range(rng.choice((3, 4)))),),
        ("What is the price of {0}?", "How much is {0} stock?", "Stock price of {0}?",
         "What does {0} trade at?"),
        _priced,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Offered:
    """A tool as it stands in one chat: the names chosen."""

    tool: Tool
    name: str
    keys: tuple[str, ...]
    definition: dict[str, Any]

    def call(self, values: tuple[Any, ...]) -> ToolCall:
        return ToolCall(self.name, dict(zip(self.keys, values, strict=True)))


def offer(rng: Random, tool: Tool) -> Offered:
    name = rng.choice(tool.names)
    properties: dict[str, Any] = {}
    keys = []
    for parameter in tool.parameters:
        key = rng.choice([k for k in parameter.names if k not in properties])
        properties[key] = {"type": parameter.kind}
        text = rng.choice(parameter.text)
        if text:
            properties[key]["description"] = text
        keys.append(key)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = list(keys)
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.92:
        function["description"] = rng.choice(tool.text)
    function["parameters"] = schema
    if rng.random() < 0.2:
        function["strict"] = True
    return Offered(tool, name, tuple(keys), {"type": "function", "function": function})


@dataclass(frozen=True)
class Request:
    """A question that one call of one offered tool answers."""

    tools: tuple[dict[str, Any], ...]
    question: str
    call: ToolCall
    result: str
    answer: str


def _returned(rng: Random, result: dict[str, Any]) -> str:
    if len(result) == 1 and rng.random() < 0.3:
        return str(next(iter(result.values())))
    if rng.random() < 0.15:
        return ", ".join(f"{key}: {value}" for key, value in result.items())
    return json.dumps(result, ensure_ascii=False)


def request(rng: Random) -> Request:
    offered = [offer(rng, tool) for tool in rng.sample(TOOLS, rng.choice((1, 1, 1, 2, 2, 3)))]
    chosen = rng.choice(offered)
    return _ask(rng, offered, chosen)


def _ask(rng: Random, offered: list[Offered], chosen: Offered) -> Request:
    values = chosen.tool.values(rng)
    question = rng.choice(chosen.tool.asks).format(*values)
    if rng.random() < 0.3:
        question = question.rstrip("?.")
    result, answer = chosen.tool.result(rng, values)
    tools = tuple(o.definition for o in offered)
    return Request(tools, question, chosen.call(values), _returned(rng, result), answer)


def _called(asked: Request) -> list[Message]:
    return [
        Message("user", asked.question),
        Message("assistant", "", (asked.call,)),
        Message("tool", asked.result),
        Message("assistant", asked.answer),
    ]


def _two_cities(rng: Random) -> Document:
    """Two calls at once, two results, one answer."""
    place = offer(rng, TOOLS[rng.choice((0, 1))])
    first, second = _ask(rng, [place], place), _ask(rng, [place], place)
    cities = [str(next(iter(r.call.arguments.values()))) for r in (first, second)]
    what = "weather" if place.tool is TOOLS[0] else "time"
    question = rng.choice(("What is the {w} in {a} and in {b}?", "Tell me the {w} in {a} and {b}."))
    messages = (
        Message("user", question.format(w=what, a=cities[0], b=cities[1])),
        Message("assistant", "", (first.call, second.call)),
        Message("tool", first.result),
        Message("tool", second.result),
        Message("assistant", f"{first.answer} {second.answer}"),
    )
    return Document(messages, first.tools)


def _plain(rng: Random) -> Exchange:
    """A question no tool is for; the sums stay within two digits, which need no calculator."""
    return rng.choice((talk.exchange, facts.exchange, facts.capital))(rng)


def document(rng: Random) -> Document:
    if rng.random() < 0.1:
        return _two_cities(rng)
    offered = [offer(rng, tool) for tool in rng.sample(TOOLS, rng.choice((1, 1, 2, 2, 3)))]
    messages: list[Message] = []
    if rng.random() < 0.3:
        messages.append(Message("system", rng.choice(talk.SYSTEM_PROMPTS)))
    for _ in range(rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.28:
            asked, answer = _plain(rng)
            if "weather" in answer or "clock" in answer:
                continue
            if rng.random() < 0.25:
                a, b = arithmetic.summands(rng)
                asked, answer = casual(rng, f"What is {a} + {b}?"), f"{a} + {b} = {a + b}."
                if any(o.tool is TOOLS[2] for o in offered):
                    continue
            messages += [Message("user", asked), Message("assistant", answer)]
        else:
            messages += _called(_ask(rng, offered, rng.choice(offered)))
    if not any(m.role == "assistant" for m in messages):
        messages += _called(_ask(rng, offered, offered[0]))
    return Document(tuple(messages), tuple(o.definition for o in offered))
