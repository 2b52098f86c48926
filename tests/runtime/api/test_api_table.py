"""docs/http-api.md says of every route and field what happens, and it happens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fake_engine import FakeEngine
from served_frontend import Served

from appliance.runtime.text.worker import TextWorker
from appliance.runtime.wire.text import Gives

PAGE = Path(__file__).parents[3] / "docs" / "http-api.md"
VERDICTS = ("honoured", "ignored", "refused")

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
BASE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 2},
    "/v1/messages": CHAT,
    "/generate": {"text": "x", "sampling_params": {"max_new_tokens": 2}},
    "/generate_stream": {"inputs": "x", "parameters": {"max_new_tokens": 2}},
    "/": {"inputs": "x", "parameters": {"max_new_tokens": 2}},
    "/v1/embeddings": {"input": "x"},
    "/encode": {"text": "x"},
    "/classify": {"input": "x"},
    "/score": {"query": "x", "items": ["y"], "label_token_ids": [5]},
    "/rerank": {"query": "x", "documents": ["y"]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
    "/abort_request": {"rid": "x"},
    "/v1/batches": {"input_file_id": "file-0", "endpoint": "/v1/completions",
                    "completion_window": "24h"},
}  # fmt: skip
SAME = {"/v1/classify": "/classify", "/v1/score": "/score",
        "/v1/rerank": "/rerank", "/v2/rerank": "/rerank"}  # fmt: skip
COUNTED = {"/v1/responses/input_tokens": "/v1/responses",
           "/v1/messages/count_tokens": "/v1/messages"}  # fmt: skip
MADE_FOR = {
    "/v1/embeddings": Gives(pooling="last"),
    "/encode": Gives(pooling="last"),
    "/classify": Gives(labels=("a", "b"), text=False),
}


class Row(NamedTuple):
    method: str
    path: str
    field: str
    example: dict[str, Any]
    verdict: str


def sections() -> Iterator[tuple[str, str]]:
    """(heading, text) of each."""
    for part in PAGE.read_text().split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        yield heading, text


def rows() -> Iterator[Row]:
    for heading, text in sections():
        routes = re.findall(r"(POST|PUT) (/\S*?)(?:,|$)", heading)
        for line in text.splitlines():
            if not routes or not line.startswith("| `"):
                continue
            field, example, what = (cell.strip() for cell in line.strip("|").split(" | ", 2))
            verdict = what.split(" ", 1)[0].rstrip(":,;")
            assert verdict in VERDICTS, line
            for method, path in routes:
                sent = json.loads("{" + example.strip("`") + "}")
                yield Row(method, path, field.strip("`"), sent, verdict)


ROWS = list(rows())


@pytest.fixture(scope="module")
def by_path() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in ROWS:
        found.setdefault(row.path, []).append(row)
    return found


def test_every_route_and_field_is_told(served: Served, by_path: dict[str, list[Row]]) -> None:
    """The server's own document says what it reads, the page what becomes of it."""
    page = PAGE.read_text()
    document = httpx.get(f"{served.url}/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in page, f"{method} {path} is not in the page"
            if "requestBody" not in operation or path in COUNTED:
                continue
            [content] = operation["requestBody"]["content"].values()
            kind = content["schema"]["$ref"].rpartition("/")[2]
            read = set(document["components"]["schemas"][kind]["properties"])
            told = {row.field.partition(".")[0] for row in by_path[path]}
            assert not read - told, f"the page does not tell of these of {path}"
            heeded = {r.field.partition(".")[0] for r in by_path[path] if r.verdict != "ignored"}
            assert not heeded - read, f"{path} does not read these"


@pytest.mark.parametrize("path", sorted({row.path for row in ROWS}))
def test_what_is_told_happens(
    path: str,
    engine: FakeEngine,
    serve: Callable[..., Served],
    by_path: dict[str, list[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = BASE[SAME.get(path, path)]
    gives = MADE_FOR.get(SAME.get(path, path))
    if gives is not None:
        monkeypatch.setattr(TextWorker, "gives", gives)
        engine.vector = lambda prompt: [0.5, 1.0, 2.0][-len(gives.labels) or None :]
    engine.start()
    served = serve().connected()
    with httpx.Client(base_url=served.url, timeout=60) as client:
        for row in by_path[path]:
            sent = {**base, **row.example}
            sent = {name: value for name, value in sent.items() if value is not None}
            answer = client.request(row.method, path, json=sent)
            where = f"{row.method} {path} {row.field}: {answer.status_code} {answer.text[:300]}"
            if row.verdict == "refused":
                assert answer.status_code in (400, 404), where
                assert (
                    row.field.rpartition(".")[2] in answer.text
                    or answer.status_code == 404
                    or ("unsupported_for_model" in answer.text)
                ), where
            else:
                assert answer.status_code == 200, where
                assert '"error":{' not in answer.text, where


def test_routes_of_others_are_not_here(served: Served) -> None:
    text = dict(sections())["Routes of others that are not here"]
    named = [p for line in text.splitlines() if line.startswith("| `")
             for p in re.findall(r"`(/[^`]*)`", line.split(" | ")[0])]  # fmt: skip
    assert len(named) > 20
    with httpx.Client(base_url=served.url) as client:
        for path in named:
            answer = client.post(path, json={})
            assert answer.status_code == 404, path
            assert answer.json()["error"]["code"] == "no_such_route", path
