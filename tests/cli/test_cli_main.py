"""The group: words, aliases, global options, errors, exit codes, and what import costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from appliance.cli import bench, main, profile
from appliance.cli.late import LateGroup
from appliance.cli.output import Output, duration, gigabytes, table
from appliance.errors import DoesNotFitError

HEAVY = "torch transformers huggingface_hub modelscope textual fastapi uvicorn pydantic rich pynvml"

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Output], object]], None]:
    """Puts a function behind the word `probe`."""

    def put(body: Callable[[Output], object]) -> None:
        @click.command("probe")
        @click.pass_obj
        def probe(out: Output) -> None:
            body(out)

        main._take_global_options(probe)
        monkeypatch.setitem(main.COMMANDS, "probe", ("", "", ""))
        monkeypatch.setitem(main.group.commands, "probe", probe)

    return put


def test_light_imports() -> None:
    code = (
        "import sys; from appliance.cli.main import run; run(['--help']);"
        f"print([m for m in {HEAVY.split()!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Commands:" in done.stdout


@pytest.mark.parametrize("words", [["status"], ["profile", "list"], ["up", "no/such"], ["doctor"]])
def test_no_command_here_loads_torch(words: list[str], own_home: Path) -> None:
    code = (
        f"import sys; from appliance.cli.main import run; run({words!r});"
        "print([m for m in ('torch', 'transformers', 'textual', 'huggingface_hub') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_every_word_is_a_command(cli: Callable[..., object]) -> None:
    ctx = click.Context(main.group)
    for word in main.COMMANDS:
        found = main.group.get_command(ctx, word)
        assert isinstance(found, click.Command), word
    for alias, word in main.ALIASES.items():
        assert main.group.get_command(ctx, alias) is main.group.get_command(ctx, word)


@pytest.mark.parametrize(
    ("word", "meant"), [("pul", "pull"), ("stats", "status"), ("servr", "serve"), ("xyzzy", None)]
)
def test_unknown_word(cli: Callable[..., object], word: str, meant: str | None) -> None:
    said = cli(word)
    assert said.code == 2 and said.out == ""
    assert f"no command '{word}'." in said.err
    assert (f"Did you mean '{meant}'?" in said.err) == (meant is not None)


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "-vv", "--no-progress", "-y", "--color", "never", "probe", "-q"],
        ["probe", "--json", "-q", "-v", "-v", "--no-progress", "-y", "--color", "never"],
        ["--json", "probe", "--no-progress", "-yq", "-vv", "--color=never"],
    ],
)
def test_global_options_before_and_behind(
    cli: Callable[..., object],
    command: Callable[[Callable[[Output], object]], None],
    words: list[str],
) -> None:
    seen: list[Output] = []
    command(seen.append)
    assert cli(*words).code == 0
    assert seen == [Output(True, True, False, 2, "never", True)]


def test_three_part_error(
    cli: Callable[..., object], command: Callable[[Callable[[Output], object]], None]
) -> None:
    def fail(out: Output) -> None:
        raise DoesNotFitError(
            "it does not fit\nbecause of this\nand that",
            "try A\ntry B",
            detail={"lacking_bytes": 7},
        )

    command(fail)
    said = cli("probe")
    assert said.code == 7 and said.out == ""
    assert said.err == (
        "error[APL-FIT-001]: it does not fit\n"
        "  why   because of this\n        and that\n"
        "  fix   try A\n        try B\n"
    )
    said = cli("probe", "--json")
    assert json.loads(said.out) == {
        "schema": "appliance.error/1",
        "error": {
            "code": "APL-FIT-001",
            "message": "it does not fit",
            "why": "because of this\nand that",
            "fix": ["try A", "try B"],
            "docs": "docs/reference/errors.md#apl-fit-001",
            "exit_code": 7,
            "detail": {"lacking_bytes": 7},
        },
    }
    assert "### APL-FIT-001\n" in (ROOT / "docs/reference/errors.md").read_text()
    assert said.err.startswith("error[")


def test_usage_errors_are_json_too(cli: Callable[..., object]) -> None:
    said = cli("status", "--nonsense", "--json")
    assert said.code == 2
    assert json.loads(said.out)["error"]["exit_code"] == 2


def test_ctrl_c_is_130(
    cli: Callable[..., object], command: Callable[[Callable[[Output], object]], None]
) -> None:
    def interrupt(out: Output) -> None:
        raise KeyboardInterrupt

    command(interrupt)
    assert cli("probe").code == 130


def test_bug_of_ours_keeps_its_traceback_in_a_file(
    cli: Callable[..., object],
    command: Callable[[Callable[[Output], object]], None],
    own_home: Path,
) -> None:
    def stumble(out: Output) -> None:
        raise ZeroDivisionError("by naught")

    command(stumble)
    said = cli("probe")
    assert said.code == 1
    assert "ZeroDivisionError: by naught" in said.err and "Traceback" not in said.err
    assert "Traceback" in (own_home / "state" / "logs" / "cli-traceback.txt").read_text()
    assert "Traceback" in cli("probe", "-vv").err


def test_reader_that_leaves_is_no_error() -> None:
    """`appliance --help | head -1`."""
    command = f"{sys.executable} -m appliance profile list | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ)
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert done.returncode in (0, 141)


def test_a_reader_that_leaves_in_the_middle_is_told_as_a_signal_would_be() -> None:
    """Not as a failure: `appliance explain | head -1` under `set -o pipefail`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "explain"],
        stdout=writer, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_results_and_notes_go_where_they_belong(
    cli: Callable[..., object], command: Callable[[Callable[[Output], object]], None]
) -> None:
    def talk(out: Output) -> None:
        out.note("note")
        out.detail("detail")
        out.warn("warning!")
        out.result("answer", {"answer": 1})

    command(talk)
    assert (cli("probe").out, cli("probe").err) == ("answer\n", "note\nwarning: warning!\n")
    assert (cli("probe", "-q").out, cli("probe", "-q").err) == ("answer\n", "warning: warning!\n")
    assert json.loads(cli("probe", "--json").out) == {"answer": 1}
    assert "detail" in cli("probe", "-v").err


def test_words_for_figures() -> None:
    assert [gigabytes(n) for n in (16.06e9, 99e6, 0)] == ["16.1 GB", "99.0 MB", "0.0 MB"]
    assert [duration(s) for s in (3.9, 247, 7980)] == ["3s", "4m07s", "2h13m"]
    assert table([["a", "bb"], ["ccc", "d"]], right=(1,)) == "a    bb\nccc   d"


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """So that it is there at once: what a command needs is loaded when it is run."""
    heavy = [
        "torch",
        "transformers",
        "fastapi",
        "uvicorn",
        "pydantic",
        "textual",
        "modelscope",
        "pynvml",
    ]
    code = (
        "import sys, io; from contextlib import redirect_stdout\n"
        "from appliance.cli.main import COMMANDS, run\n"
        "for word in COMMANDS:\n"
        "    with redirect_stdout(io.StringIO()):\n"
        "        assert run([word, '--help']) == 0\n"
        f"    found = [m for m in {heavy!r} if m in sys.modules]\n"
        "    assert not found, (word, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("word", "group"), [("bench", bench.bench), ("profile", profile.profile)])
def test_commands_that_are_loaded_late_are_listed_as_they_are(word: str, group: LateGroup) -> None:
    """What stands in the list is what their help begins with, and they take global options."""
    context = click.Context(main.group)
    command = main.group.get_command(context, word)
    assert command is group
    for name, (_, _, line) in group.late.items():
        found = group.get_command(context, name)
        assert found is not None and found.get_short_help_str(200) == line
        assert {"--json", "--offline"} <= {opt for p in found.params for opt in p.opts}


def test_a_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from appliance.cli.main import run\n"
        "run(['bench', '--help']), run(['profile', '--help'])\n"
        "sys.exit('numpy' in sys.modules or 'appliance.cli.tune' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "tune" in done.stdout and "compare" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("up", "--port", "70000"), "70000 is not from 0 to 65535."),
        (("up", "--tp", "0"), "0 is less than 1."),
        (("up", "--context", "1k"), "'1k' is no whole number."),
        (("run", "hi", "--temperature", "warm"), "'warm' is no number."),
        (("completion",), "Choose from: bash, zsh, fish"),
        (("up", "--set", "serve.port=abc"), "it takes whole number from 0 to 65535."),
        (("up", "--set", "schedule.mixed_chunk=maybe"), "it takes true, false."),
        (("up", "--set", "model.dtype=int3"), "it takes auto, bfloat16, float16, float32."),
    ],
)
def test_wrong_values_are_told_without_python_s_words(
    cli: Callable[..., Any], words: tuple[str, ...], says: str
) -> None:
    said = cli(*words)
    assert said.code == 2 and says in said.err
    assert "range" not in said.err and "`int`" not in said.err and "why" not in said.err
