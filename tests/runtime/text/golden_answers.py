"""Answers as models of each family write them, and the message each of them is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "zip": {"type": "string"},
                "tags": {"type": "array"},
                "deep": {"type": "object"},
                "dry": {"type": "boolean"},
            },
        },
    },
}
TIME = {"type": "function", "function": {"name": "time.now", "parameters": {"type": "object"}}}
TOOLS: list[dict[str, Any]] = [WEATHER, TIME]


@dataclass(frozen=True)
class Golden:
    """calls: name and arguments, decoded. prompt_end: how the prompt ended."""

    name: str
    tools: str
    said: str
    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    thinks: str = "none"
    prompt_end: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


BERLIN = ("get_weather", {"city": "Berlin"})
PARIS = ("get_weather", {"city": "Paris", "days": 2})
NOW: tuple[str, dict[str, Any]] = ("time.now", {})
ODD = ("get_weather", {"city": 'São "P" \\ {x} </tool_call> 👋', "days": -1.5e3, "dry": True})
_ODD_JSON = '{"city": "São \\"P\\" \\\\ {x} </tool_call> 👋", "days": -1.5e3, "dry": true}'


def _hermes(*bodies: str) -> str:
    return "\n".join(f"<tool_call>\n{b}\n</tool_call>" for b in bodies)


_ONE = '{"name": "get_weather", "arguments": {"city": "Berlin"}}'
_TWO = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}'
_NOW = '{"name": "time.now", "arguments": {}}'

_HERMES = [
    Golden("one", "hermes", _hermes(_ONE), calls=(BERLIN,)),
    Golden("several", "hermes", _hermes(_ONE, _TWO, _NOW), calls=(BERLIN, PARIS, NOW)),
    Golden("text before", "hermes", "Let me look.\n\n" + _hermes(_ONE), "Let me look.",
           calls=(BERLIN,)),
    Golden("text after", "hermes", _hermes(_ONE) + "\nDone. ", "Done. ".rstrip(), calls=(BERLIN,)),
    Golden("strange arguments", "hermes",
           _hermes('{"name": "get_weather", "arguments": ' + _ODD_JSON + "}"), calls=(ODD,)),
    Golden("arguments first", "hermes",
           _hermes('{"arguments": {"city": "Berlin"}, "name": "get_weather"}'), calls=(BERLIN,)),
    Golden("arguments as text", "hermes",
           _hermes('{"name": "get_weather", "arguments": "{\\"city\\": \\"Berlin\\"}"}'),
           calls=(BERLIN,)),
    Golden("no arguments", "hermes", _hermes('{"name": "time.now"}'), calls=(NOW,)),
    Golden("parameters, a type and an id", "hermes",
           _hermes('{"type": "function", "id": "1", "name": "get_weather", '
                   '"parameters": {"city": "Berlin"}}'), calls=(BERLIN,)),
    Golden("an end that never comes", "hermes", "<tool_call>" + _ONE, calls=(BERLIN,)),
    Golden("a list", "hermes", f"<tool_call>[{_ONE}, {_TWO}]</tool_call>", calls=(BERLIN, PARIS)),
    Golden("talk of a mark", "hermes", "Write <tool_call> and </tool_call> around it.",
           "Write <tool_call> and </tool_call> around it."),
    Golden("no name", "hermes", "<tool_call>\n{\"city\": 1}\n</tool_call>",
           "<tool_call>\n{\"city\": 1}\n</tool_call>"),
    Golden("the first only", "hermes", _hermes(_ONE, _TWO), calls=(BERLIN,),
           fields={"parallel_calls": False}),
    Golden("plain text", "hermes", " 3 < 4 and <tool\n", " 3 < 4 and <tool\n"),
]  # fmt: skip

_LLAMA = [
    Golden("JSON", "llama3", '{"name": "get_weather", "parameters": {"city": "Berlin"}}',
           calls=(BERLIN,)),
    Golden("JSON behind the tag", "llama3",
           '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Berlin"}}',
           calls=(BERLIN,)),
    Golden("several", "llama3",
           '{"name": "get_weather", "parameters": {"city": "Berlin"}}; '
           '{"name": "time.now", "parameters": {}}', calls=(BERLIN, NOW)),
    Golden("on lines", "llama3",
           '{"name": "get_weather", "parameters": {"city": "Berlin"}}\n'
           '{"name": "time.now", "parameters": {}}', calls=(BERLIN, NOW)),
    Golden("JSON that is an answer", "llama3", '{"name": "Ada", "born": 1815}',
           '{"name": "Ada", "born": 1815}'),
    Golden("Python", "llama3", "[get_weather(city='Berlin'), time.now()]", calls=(BERLIN, NOW)),
    Golden("text", "llama3", "It is [sunny] in {Berlin}.", "It is [sunny] in {Berlin}."),
    Golden("a list that is an answer", "llama3", "[1, 2, 3]", "[1, 2, 3]"),
    Golden("Python's literals", "pythonic",
           '[get_weather(city="a\\n\\"b\\" \\x41\\u00e9 it\'s", tags=[1, -2.5, (True, None,),], '
           "deep={'k': {}, \"l\": [False]}, dry=True)]",
           calls=(("get_weather", {"city": 'a\n"b" Aé it\'s', "tags": [1, -2.5, [True, None]],
                                   "deep": {"k": {}, "l": [False]}, "dry": True}),)),
    Golden("Llama 4", "pythonic", "<|python_start|>[get_weather(city=\"Berlin\")]<|python_end|>",
           "<|python_end|>", calls=(BERLIN,)),
    Golden("no literal", "pythonic", "[get_weather(city=__import__('os'))]",
           "[get_weather(city=__import__('os'))]"),
    Golden("keys that are no strings", "pythonic", "[get_weather(deep={1: 2})]",
           "[get_weather(deep={1: 2})]"),
    Golden("not known", "pythonic", "[print(x=1)]", "[print(x=1)]"),
]  # fmt: skip

_FORCED = {"calls": "forced", "may_call": ("get_weather", "time.now")}

_OTHERS = [
    Golden("a list", "mistral", f"[TOOL_CALLS][{_ONE}, {_TWO}]", calls=(BERLIN, PARIS)),
    Golden("text and a list", "mistral", f"Sure. [TOOL_CALLS] [{_ONE}]", "Sure.",
           calls=(BERLIN,)),
    Golden("named", "mistral",
           '[TOOL_CALLS]get_weather[ARGS]{"city": "Berlin"}[TOOL_CALLS]time.now[ARGS]{}',
           calls=(BERLIN, NOW)),
    Golden("named with an id", "mistral",
           '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Berlin"}', calls=(BERLIN,)),
    Golden("nothing behind the mark", "mistral", "[TOOL_CALLS] hm", "[TOOL_CALLS] hm"),
    Golden("V3", "deepseek-v3",
           "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
           '```json\n{"city": "Berlin"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function'
           "<｜tool▁sep｜>time.now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
           "I look.", calls=(BERLIN, NOW)),
    Golden("V3.1", "deepseek-v3",
           "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
           '{"city": "Berlin"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>', calls=(BERLIN,)),
    Golden("K2", "kimi-k2",
           "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
           '<|tool_call_argument_begin|>{"city": "Berlin"}<|tool_call_end|>'
           "<|tool_calls_section_end|>", calls=(BERLIN,)),
    Golden("a name and JSON", "glm4", 'get_weather\n{"city": "Berlin"}', calls=(BERLIN,)),
    Golden("text", "glm4", "get_weather is a function.\nOf mine.",
           "get_weather is a function.\nOf mine."),
    Golden("pairs", "glm45",
           "Well.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
           "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n"
           "<tool_call>time.now\n</tool_call>", "Well.", calls=(PARIS, NOW)),
    Golden("a number that is a text", "glm45",
           "<tool_call>get_weather<arg_key>zip</arg_key><arg_value>01234</arg_value>"
           "<arg_key>tags</arg_key><arg_value>[1, \"b\"]</arg_value></tool_call>",
           calls=(("get_weather", {"zip": "01234", "tags": [1, "b"]}),)),
    Golden("tags", "qwen3-coder",
           "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
           "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>", calls=(PARIS,)),
    Golden("lines within", "qwen3-coder",
           "<tool_call>\n<function=get_weather>\n<parameter=city>\na\n\n b\n</parameter>\n"
           "</function>\n</tool_call>\n", calls=(("get_weather", {"city": "a\n\n b"}),)),
    Golden("JSON", "json", _ONE, calls=(BERLIN,)),
    Golden("a list of JSON", "json", f" [{_ONE},\n{_TWO}]", calls=(BERLIN, PARIS)),
    Golden("fenced", "json", f"```json\n{_ONE}\n```", calls=(BERLIN,)),
    Golden("other code", "json", "```python\nprint()\n```", "```python\nprint()\n```"),
    Golden("forced", "llama3", f"[{_ONE}]", calls=(BERLIN,), fields=_FORCED),
    Golden("forced and cut short", "glm4", f'[{_ONE}, {{"name": "get', calls=(BERLIN,),
           fields=_FORCED),
    Golden("forced in the own form", "hermes", _hermes(_ONE) + '\n<tool_call>\n{"nam',
           calls=(BERLIN,), fields=_FORCED),
]  # fmt: skip

_QWEN = {"tools": "hermes", "thinks": "qwen3"}
_REASONING = [
    Golden("thought", said="<think>\nHm, 2+2.\n</think>\n\nFour.", text="Four.",
           reasoning="Hm, 2+2.", **_QWEN),
    Golden("thought and call", said=f"<think>\nHm.\n</think>\n\n{_hermes(_ONE)}",
           reasoning="Hm.", calls=(BERLIN,), **_QWEN),
    Golden("begun in the prompt", said="Hm.\n</think>\nFour.", text="Four.", reasoning="Hm.",
           prompt_end="<|im_start|>assistant\n<think>\n", **_QWEN),
    Golden("ended in the prompt", said="Four </think>.", text="Four </think>.",
           prompt_end="<think>\n\n</think>\n\n", **_QWEN),
    Golden("a mark further on", said="The mark <think> opens.", text="The mark <think> opens.",
           **_QWEN),
    Golden("never closed", said="<think>Hm <tool_call>", reasoning="Hm <tool_call>", **_QWEN),
    Golden("dropped", said="<think>Hm</think>Four.", text="Four.", fields={"reasoning": "hidden"},
           **_QWEN),
    Golden("left in the text", said="<think>Hm</think>\n\nFour.",
           text="<think>Hm</think>\n\nFour.", fields={"reasoning": "inline"}, **_QWEN),
    Golden("without a mark", "none", "Hm.\n</think>\n\nFour.", "Four.", "Hm.",
           thinks="deepseek-r1", prompt_end="<｜Assistant｜>"),
    Golden("with a mark again", "none", "<think>\nHm.\n</think>\n\nFour.", "Four.", "Hm.",
           thinks="deepseek-r1", prompt_end="<｜Assistant｜><think>\n"),
    Golden("Magistral", "mistral", f"[THINK]Hm[/THINK]Ok.[TOOL_CALLS][{_ONE}]", "Ok.", "Hm",
           (BERLIN,), "mistral"),
]  # fmt: skip

_OSS = {"tools": "harmony", "thinks": "harmony", "prompt_end": "<|start|>assistant"}
_HARMONY = [
    Golden("thought and answer",
           said="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
           "<|message|>Four.", text="Four.", reasoning="Hm.", **_OSS),
    Golden("thought and call",
           said="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
           'to=functions.get_weather <|constrain|>json<|message|>{"city": "Berlin"}<|call|>',
           reasoning="Hm.", calls=(BERLIN,), **_OSS),
    Golden("recipient first",
           said="<|channel|>commentary<|message|>I look.<|end|><|start|>assistant "
           'to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Berlin"}',
           text="I look.", calls=(BERLIN,), **_OSS),
    Golden("two thoughts",
           said="<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis"
           "<|message|>B<|end|><|start|>assistant<|channel|>final<|message|>C<|return|>",
           text="C", reasoning="A\nB", **_OSS),
    Golden("no channels at all", said="Four.", text="Four.", **_OSS),
    Golden("thoughts dropped",
           said="<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final"
           "<|message|>Four.", text="Four.", fields={"reasoning": "hidden"}, **_OSS),
]  # fmt: skip

GOLDEN = [*_HERMES, *_LLAMA, *_OTHERS, *_REASONING, *_HARMONY]
