"""What an answer must be, in the words of OpenAI, SGLang and vLLM -> one Grammar."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from appliance.errors import RequestError
from appliance.runtime.wire.request import Grammar, GrammarKind

MAX_SOURCE = 256 << 10
"""Bytes of a schema, an expression or a grammar."""
MAX_CHOICES = 4096

Written = str | dict[str, Any]
"""JSON, as an object or as text."""
Choices = Annotated[list[str], Meta(min_length=1, max_length=MAX_CHOICES)]


class JsonSchema(Struct, rename={"schema_": "schema"}):
    schema_: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    type: str
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class StructuredOutputs(Struct):
    """vLLM's. Its json, regex, choice, grammar, json_object and structural_tag exclude each other.

    disable_any_whitespace: False lets JSON be laid out freely.
    """

    json: Written | None = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Written | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


class Wanted:
    """Gathers what a request says; more than one word on it is an error."""

    def __init__(self) -> None:
        self._found: list[tuple[str, Grammar]] = []

    def add(
        self, param: str, kind: GrammarKind, source: str, strict: bool = True, loose: bool = False
    ) -> None:
        if len(source.encode()) > MAX_SOURCE:
            raise RequestError(
                f"{param} has {len(source.encode()):,} bytes; at most {MAX_SOURCE:,} are taken.",
                code="grammar_too_complex",
                param=param,
            )
        if not source and kind != "json_object":
            raise RequestError(f"{param} is empty.", param=param)
        self._found.append((param, Grammar(kind, source, strict, loose)))

    def only(self) -> Grammar | None:
        if len(self._found) > 1:
            (first, _), (second, _) = self._found[:2]
            raise RequestError(
                f"{first} and {second} both say what the answer must be; leave one out.",
                param=second.partition(".")[0],
            )
        return self._found[0][1] if self._found else None

    def add_format(self, given: ResponseFormat) -> None:
        """OpenAI's response_format, and SGLang's structural tags in it."""
        param = "response_format"
        if given.type == "text":
            return
        if given.type == "json_object":
            self.add(param, "json_object", "", loose=True)
        elif given.type == "json_schema":
            inner = given.json_schema
            if inner is None or inner.schema_ is None:
                raise RequestError(
                    "response_format of type 'json_schema' needs json_schema.schema.", param=param
                )
            self.add(param, "json_schema", _json(inner.schema_, param), inner.strict is True)
        elif given.type == "structural_tag":
            self.add(param, "structural_tag", _json(_tags(given), param))
        else:
            raise RequestError(
                f"response_format {given.type[:40]!r} is not supported; it can be 'text', "
                "'json_object', 'json_schema' or 'structural_tag'.",
                code="unsupported_value",
                param=param,
            )

    def add_outputs(self, given: StructuredOutputs) -> None:
        param = "structured_outputs"
        loose = given.disable_any_whitespace is False
        if given.whitespace_pattern:
            raise RequestError(
                "structured_outputs.whitespace_pattern is not supported; "
                "disable_any_whitespace: false lets JSON be laid out freely.",
                code="unsupported_value",
                param=param,
            )
        if given.json is not None:
            self.add(f"{param}.json", "json_schema", _json(given.json, param), False, loose)
        if given.json_object:
            self.add(f"{param}.json_object", "json_object", "", loose=True)
        if given.structural_tag is not None:
            source = _json(given.structural_tag, param)
            self.add(f"{param}.structural_tag", "structural_tag", source)
        self._add_plain(f"{param}.", given.regex, given.choice, given.grammar)

    def add_native(
        self, json: Written | None, regex: str | None, ebnf: str | None, tag: Written | None
    ) -> None:
        """SGLang's words."""
        if json is not None:
            self.add("json_schema", "json_schema", _json(json, "json_schema"), False)
        if regex is not None:
            self.add("regex", "regex", regex)
        if ebnf is not None:
            self.add("ebnf", "ebnf", ebnf)
        if tag is not None:
            self.add("structural_tag", "structural_tag", _json(tag, "structural_tag"))

    def add_guided(
        self,
        json: Written | None,
        regex: str | None,
        choice: list[str] | None,
        grammar: str | None,
    ) -> None:
        """vLLM's older words."""
        if json is not None:
            self.add("guided_json", "json_schema", _json(json, "guided_json"), False)
        self._add_plain("guided_", regex, choice, grammar)

    def _add_plain(
        self, prefix: str, regex: str | None, choice: list[str] | None, grammar: str | None
    ) -> None:
        if regex is not None:
            self.add(f"{prefix}regex", "regex", regex)
        if choice is not None:
            self.add(f"{prefix}choice", "ebnf", _one_of(choice))
        if grammar is not None:
            self.add(f"{prefix}grammar", "ebnf", grammar)


def _json(value: Written | bool, param: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError as e:
        raise RequestError(f"{param} is nested too deeply.", param=param) from e


def _tags(given: ResponseFormat) -> dict[str, Any]:
    """xgrammar's form; SGLang's older one has structures and triggers."""
    if given.format is not None:
        return {"type": "structural_tag", "format": given.format}
    if not given.structures or not given.triggers:
        raise RequestError(
            "response_format of type 'structural_tag' needs format, or structures and triggers.",
            param="response_format",
        )
    tags = [
        {
            "begin": each.get("begin", ""),
            "content": {"type": "json_schema", "json_schema": each.get("schema", {})},
            "end": each.get("end", ""),
        }
        for each in given.structures
    ]
    format = {"type": "triggered_tags", "triggers": given.triggers, "tags": tags}
    return {"type": "structural_tag", "format": format}


_ESCAPES = str.maketrans(
    {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    | {chr(c): f"\\x{c:02x}" for c in range(32) if chr(c) not in "\n\r\t"}
)


def _one_of(choices: list[str]) -> str:
    return "root ::= " + " | ".join(f'"{c.translate(_ESCAPES)}"' for c in choices)
