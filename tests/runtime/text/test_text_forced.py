"""The grammar of forced calls: every answer it allows is read as calls of the tools that may be."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from golden_answers import TIME, TOOLS, WEATHER

from appliance.errors import RequestError
from appliance.runtime.text.tools.forced import calls_grammar, strict_grammar

NODE = {
    "type": "function",
    "function": {
        "name": "grow",
        "parameters": {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/node"}, "root": {"$ref": "#"}},
                    "additionalProperties": False,
                }
            },
            "properties": {"node": {"$ref": "#/$defs/node"}},
        },
    },
}


def listed(names: set[str], parallel: bool = True) -> Any:
    grammar = calls_grammar("llama3", [*TOOLS, NODE], names, parallel)
    assert grammar.kind == "json_schema"
    return jsonschema.Draft202012Validator(json.loads(grammar.source))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_a_list_of_calls() -> None:
    valid = listed({"get_weather", "time.now"}).is_valid
    assert valid([call("get_weather", city="Berlin"), call("time.now")])
    assert not valid([]) and not valid([call("other")]) and not valid([call("get_weather", city=1)])
    assert not valid([call("grow")]), "it may not be called"
    assert not listed({"time.now"}, parallel=False).is_valid([call("time.now")] * 2)


def test_what_a_schema_refers_to_stays_its_own() -> None:
    valid = listed({"time.now", "grow"}).is_valid
    assert valid([call("grow", node={"next": {"next": {}}})])
    assert not valid([call("grow", node={"next": {"other": {}}})])
    assert valid([call("grow", node={"root": {"node": {}}})])
    assert not valid([call("grow", node={"root": {"node": 1}})])


@pytest.mark.parametrize("parallel", [True, False])
def test_the_models_own_form(parallel: bool) -> None:
    grammar = calls_grammar("hermes", [WEATHER, TIME], {"time.now"}, parallel)
    assert grammar.kind == "structural_tag"
    shape = json.loads(grammar.source)["format"]
    (tag,) = shape["tags"]
    whole = tag["begin"] + "{}" + tag["end"]
    assert whole == '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'
    assert shape["stop_after_first"] is not parallel


def test_too_much_is_told() -> None:
    huge = {"function": {"name": "f", "parameters": {"description": "x" * (300 << 10)}}}
    for form in ("hermes", "json"):
        with pytest.raises(RequestError, match="262,144") as e:
            calls_grammar(form, [huge], {"f"}, True)
        assert e.value.param == "tools"
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="deeply"):
        calls_grammar("json", [{"function": {"name": "f", "parameters": deep}}], {"f"}, True)


def test_strict_tools_are_held_to_their_schemas_where_they_are_called() -> None:
    strict = {"function": {**WEATHER["function"], "strict": True}}
    grammar = strict_grammar("hermes", [strict, TIME], True)
    assert grammar is not None
    shape = json.loads(grammar.source)["format"]
    assert shape["type"] == "triggered_tags" and shape["triggers"] == ["<tool_call>"]
    schemas = [tag["content"]["json_schema"] for tag in shape["tags"]]
    assert schemas == [WEATHER["function"]["parameters"], {"type": "object"}]
    assert strict_grammar("hermes", TOOLS, True) is None, "none is strict"
    assert strict_grammar("llama3", [strict], True) is None, "no marks to hold to"


@pytest.mark.parametrize("form", ["hermes", "llama3"])
def test_one_of_is_any_of_where_a_tool_is_not_strict(form: str) -> None:
    values = {"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}
    properties = {"value": values, "oneOf": {"type": "integer"}}  # a name as good as another
    function = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    loose = calls_grammar(form, [{"type": "function", "function": function}], ["f"], True).source
    assert '"anyOf": [{"type": "string"}, {"type": "string"' in loose
    assert '"oneOf": {"type": "integer"}' in loose
    strict = {"type": "function", "function": {**function, "strict": True}}
    assert '"oneOf": [' in calls_grammar(form, [strict], ["f"], True).source
    assert values["oneOf"]
