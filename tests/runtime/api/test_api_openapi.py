"""Our own OpenAPI document against us: whatever a schema allows or forbids, nothing breaks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi import checks
from served_frontend import Served

EXAMPLES = 12
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.status_code_conformance,
]


NO_SUPERVISOR = ("/appliance/v1/top",)
"""Asks the supervisor, which is not there: 503 is right."""


def operations(document: Any) -> list[Any]:
    found = [one.ok() for one in document.get_all_operations()]
    return [one for one in found if one.path not in NO_SUPERVISOR]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda m: m.value)
def test_every_operation_bears_what_its_schema_says_and_what_it_forbids(
    served: Served, engine: FakeEngine, mode: schemathesis.GenerationMode
) -> None:
    served.set_state(state="ready", reached_ready=True)
    document = schemathesis.openapi.from_dict(httpx.get(f"{served.url}/openapi.json").json())
    found = operations(document)
    assert len(found) > 30
    seen: set[int] = set()
    for operation in found:
        if mode.value == "negative" and not list(operation.body):
            continue

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def bears(case: Any) -> None:
            answer = case.call(base_url=served.url, timeout=30)
            seen.add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        bears()
    assert 200 in seen or mode.value == "negative"
    assert 400 in seen
    served.until(lambda: served.frontend.live == 0)
