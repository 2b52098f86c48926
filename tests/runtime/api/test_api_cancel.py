"""The operator cancels a request: its client is told, the engine is, others go on."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import msgspec
import pytest
from fake_engine import FakeEngine
from served_frontend import Served
from sse_reader import events

from appliance import paths, status
from appliance.status import Cancels, FrontendSnapshot


def cancel(run_dir: Path, *ids: str) -> None:
    status.publish(paths.cancels(run_dir), Cancels(ids))


@pytest.mark.parametrize("stream", [False, True])
def test_one_is_cancelled_by_its_id_the_other_goes_on(
    served: Served, engine: FakeEngine, run_dir: Path, stream: bool
) -> None:
    engine.hold.set()
    answers: dict[str, httpx.Response] = {}

    def ask(name: str) -> None:
        answers[name] = httpx.post(
            f"{served.url}/v1/completions",
            json={"prompt": "Hello", "max_tokens": 40, "stream": stream},
            headers={"x-request-id": name},
            timeout=30,
        )

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    engine.wait(lambda: len(engine.requests) == 2)
    cancel(run_dir, "one")
    engine.wait(lambda: len(engine.aborts) == 1)
    threads[0].join(20)
    engine.hold.clear()
    threads[1].join(20)
    assert answers["one"].status_code == 409
    assert answers["one"].json()["error"]["code"] == "cancelled_by_operator"
    assert answers["one"].headers["x-should-retry"] == "false"
    assert answers["two"].status_code == 200
    file = paths.frontend_snapshot(run_dir, 0)

    def finished() -> dict[str, str]:
        snapshot = msgspec.json.decode(file.read_bytes(), type=FrontendSnapshot)
        return {row.id: row.finish for row in snapshot.finished if row.phase == "done"}

    served.until(lambda: finished() == {"two": "length", "one": "cancelled_by_operator"})


def test_a_stream_under_way_ends_with_the_error(
    served: Served, engine: FakeEngine, run_dir: Path
) -> None:
    engine.budget = 5
    url, body = f"{served.url}/v1/completions", {"prompt": "H", "max_tokens": 40, "stream": True}
    headers = {"x-request-id": "three"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as response:
        text = ""
        for piece in response.iter_text():
            text += piece
            if engine.budget == 0 and not paths.cancels(run_dir).exists():
                cancel(run_dir, "three")
    assert events(text)[-1]["error"]["code"] == "cancelled_by_operator"
    assert served.frontend.live == 0


def test_an_id_is_told_once_and_half_a_file_is_no_file(run_dir: Path) -> None:
    from appliance.runtime.api.state import CancelFile

    file = CancelFile(paths.cancels(run_dir))
    assert file.fresh() == []
    cancel(run_dir, "a", "b")
    assert file.fresh() == ["a", "b"] and file.fresh() == []
    cancel(run_dir, "b", "c")
    assert file.fresh() == ["c"]
    paths.cancels(run_dir).write_text("{")
    assert file.fresh() == []
