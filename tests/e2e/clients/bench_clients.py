"""The bench clients of SGLang and vLLM, their own programs, against running servers.

    appliance up --port 8000 -d --wait
    appliance up FOLDER --name embed --port 8001 -d --wait
    python tests/e2e/clients/bench_clients.py --embeddings http://127.0.0.1:8001 \\
        --sglang /tmp/sglang/bin/python --vllm /tmp/vllm/bin/python

README.md says how the two environments are made, and which folder gives embeddings. A run passes
when every request was answered, every answer has as many tokens as were asked for, and the first
token came in the first half of the answer's time, as it does where it is really streamed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "appliance" / "default_model"
REQUESTS, READ, WRITTEN = 24, 64, 32
COMMON = (
    "--tokenizer", str(MODEL), "--num-prompts", str(REQUESTS), "--max-concurrency", "4",
    "--random-input-len", str(READ), "--random-output-len", str(WRITTEN),
)  # fmt: skip
VLLM = {
    "openai": ("/v1/completions", "--ignore-eos"),
    "openai-chat": ("/v1/chat/completions", "--ignore-eos"),
    "openai-embeddings": ("/v1/embeddings",),
}


def run(*words: str) -> str:
    """Its output; the packages of stub/ stand in for those that want a GPU."""
    quiet = {"PYTHONPATH": str(HERE / "stub"), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        words, env=os.environ | quiet, capture_output=True, text=True, timeout=600
    )
    return "" if done.returncode == 0 else f"ended with {done.returncode}: {done.stderr[-2000:]}"


def sglang(python: str, backend: str, url: str, file: Path) -> dict[str, Any] | str:
    failed = run(
        python, "-m", "sglang.benchmark.serving", "--backend", backend, "--base-url", url,
        "--model", "default", "--dataset-name", "random-ids", "--random-range-ratio", "1.0",
        *COMMON, "--output-file", str(file),
    )  # fmt: skip
    return failed or dict(json.loads(file.read_text()))


def vllm(python: str, backend: str, url: str, file: Path) -> dict[str, Any] | str:
    endpoint, *words = VLLM[backend]
    failed = run(
        python, "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", backend,
        "--endpoint", endpoint, "--base-url", url, "--model", "default", "--dataset-name", "random",
        *COMMON, *words, "--save-result", "--result-filename", str(file),
    )  # fmt: skip
    return failed or dict(json.loads(file.read_text()))


def fault(told: dict[str, Any] | str, writes: bool) -> str:
    """What is wrong with a result; nothing when nothing is."""
    if isinstance(told, str):
        return told
    if told["completed"] != REQUESTS:
        return f"{told['completed']} of {REQUESTS} requests were answered"
    if not writes:
        return ""
    if told["total_output_tokens"] != REQUESTS * WRITTEN:
        return f"{told['total_output_tokens']} tokens came of {REQUESTS * WRITTEN}"
    whole = told["mean_ttft_ms"] + told["mean_tpot_ms"] * (WRITTEN - 1)
    if not 0 < told["mean_ttft_ms"] < whole / 2:
        return f"the first token after {told['mean_ttft_ms']:.0f} ms of {whole:.0f}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--embeddings", default="", help="URL of a server that gives them")
    parser.add_argument("--sglang", default="", help="python of its environment")
    parser.add_argument("--vllm", default="", help="python of its environment")
    args = parser.parse_args()
    cases = [
        *[("sglang", sglang, args.sglang, b)
          for b in ("sglang", "sglang-oai", "sglang-oai-chat", "vllm", "vllm-chat")],
        *[("vllm", vllm, args.vllm, b) for b in VLLM],
    ]  # fmt: skip
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, ask, python, backend in cases:
            writes = backend != "openai-embeddings"
            url = args.url if writes else args.embeddings
            if not python or not url:
                print(f"{name} {backend}: left out")
                continue
            told = ask(python, backend, url, Path(folder) / f"{name}-{backend}.json")
            wrong = fault(told, writes)
            failed += bool(wrong)
            shown = "" if wrong or not writes else f", TTFT {told['mean_ttft_ms']:.0f} ms"  # type: ignore[index]
            print(
                f"{name} {backend}: {f'FAILS: {wrong}' if wrong else f'passes{shown}'}", flush=True
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
