"""What a refusal advises is typed, as a stranger would: none of it may lead to another refusal."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from appliance.cli import prepare as room
from appliance.cli.prepare import Asked, Prepared, prepare
from appliance.errors import ApplianceError, DoesNotFitError, HardwareError, UsageError
from appliance.hardware import GpuProcess, HardwareSnapshot
from appliance.profiles import known

IDLE = known.IDLE_MIB << 20


class Case(NamedTuple):
    config: dict[str, Any]
    hardware: HardwareSnapshot
    options: dict[str, Any]
    settings: tuple[str, ...]


def shape(draw: random.Random) -> dict[str, Any]:
    """A dense model of 0.1 to some 200 billion weights."""
    head = draw.choice([64, 128])
    heads = draw.choice([8, 14, 16, 28, 32, 40, 64, 96])
    kv = draw.choice([k for k in (1, 2, 4, 7, 8, heads) if heads % k == 0])
    stored = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": heads * head,
        "intermediate_size": heads * head * draw.choice([2, 3, 4]),
        "num_hidden_layers": draw.choice([8, 16, 32, 48, 64, 80, 100]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head,
        "vocab_size": draw.choice([32000, 128256]),
        "max_position_embeddings": draw.choice([8192, 32768, 131072, 1048576]),
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "torch_dtype": draw.choice(["bfloat16", "float16", "float32"]),
        "tie_word_embeddings": draw.random() < 0.3,
        **({"quantization_config": stored} if draw.random() < 0.2 else {}),
    }


def machine(draw: random.Random) -> HardwareSnapshot:
    """GPUs of one kind, some of them held by others in part."""
    here = known.machine_of(draw.choice(known.KNOWN), draw.choice([1, 1, 2, 3, 4, 8]))
    gpus = []
    for gpu in here.gpus:
        used = IDLE
        if draw.random() < 0.35:
            used = int(gpu.memory_total * draw.uniform(0.05, 0.98))
        named = (GpuProcess(4121, "python", used),) if used > IDLE and draw.random() < 0.8 else ()
        gpus.append(msgspec.structs.replace(gpu, memory_used=used, processes=named))
    return msgspec.structs.replace(here, gpus=tuple(gpus))


def case(seed: int) -> Case:
    draw = random.Random(seed)
    options: dict[str, Any] = {"load_format": "dummy"}
    settings: list[str] = []
    config, hardware = shape(draw), machine(draw)
    if draw.random() < 0.35:
        longest = config["max_position_embeddings"]
        options["context"] = min(longest, draw.choice([4096, 20_000, 100_000, 500_000]))
    if draw.random() < 0.25:
        options["tp"] = draw.choice([1, 2, 4, 8])
    for share, text in (
        (0.1, "model.quantization=fp8"),
        (0.1, "model.kv_dtype=e5m2"),
        (0.1, "schedule.max_running=16"),
        (0.1, "schedule.chunk=32768"),
        (0.1, "engine.graphs=false"),
        (0.1, "engine.memory_fraction=0.4"),
        (0.1, "engine.replicas=2"),
    ):
        settings += [text] if draw.random() < share else []
    return Case(config, hardware, options, tuple(settings))


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def up(one: Case, assume: str | None = None) -> Prepared:
        (tmp_path / "config.json").write_text(json.dumps(one.config))
        monkeypatch.setattr(room, "detect", lambda: one.hardware)
        return prepare(Asked(str(tmp_path), "r", None, one.options, one.settings, assume), {})

    return up


def after(line: str, one: Case) -> Case:
    """The case once somebody has done what one line of advice says."""
    options, settings, hardware = dict(one.options), list(one.settings), one.hardware
    words = [w for found in re.findall(r"`(--[^`]*)`", line) for w in shlex.split(found)]
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            settings.append(value)
        elif option == "--gpus":
            chosen = [g for g in hardware.gpus if str(g.index) in value.split(",")]
            hardware = msgspec.structs.replace(hardware, gpus=tuple(chosen))
        else:
            options[option[2:]] = int(value)
    if line.startswith("Stop what holds"):
        alone = [
            msgspec.structs.replace(g, memory_used=min(g.memory_used, IDLE), processes=())
            for g in hardware.gpus
        ]
        hardware = msgspec.structs.replace(hardware, gpus=tuple(alone))
    return Case(one.config, hardware, options, tuple(settings))


def elsewhere(one: Case) -> Case:
    """What is typed on another machine, which shares the model out by itself."""
    options = {k: v for k, v in one.options.items() if k != "tp"}
    settings = tuple(s for s in one.settings if not s.startswith("engine.replicas"))
    return Case(one.config, one.hardware, options, settings)


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_each_way_out_is_one(first: int, typed: Any) -> None:
    taken = 0
    for seed in range(first, first + 40):
        one = case(seed)
        try:
            typed(one)
            continue
        except DoesNotFitError as e:
            advice = e.hint.split("\n")
        except ApplianceError:
            continue
        for line in advice:
            if line.startswith("Machines that hold it: "):
                for word in line.partition(": ")[2].rstrip(".").split(", "):
                    typed(elsewhere(one), word)
                    taken += 1
            elif line.startswith(("Use `--", "Stop what holds")):
                typed(after(line, one))
                taken += 1
            else:
                assert line.startswith(("Serve a model of at most ", "Free memory of GPU ")), line
    assert taken > 5


@pytest.mark.parametrize("seed", range(12))
def test_sizes_that_are_named_share_the_model_out(seed: int, typed: Any) -> None:
    """More GPUs than there are, or a number of them that the heads do not divide by."""
    drawn = case(seed)
    for tp, replicas in ((8, 1), (4, 2), (1, 16), (3, 1)):
        one = Case(
            drawn.config,
            known.machine_of(known.KNOWN[-1], 3),
            {"load_format": "dummy", "tp": tp},
            (f"engine.replicas={replicas}",),
        )
        for _ in range(2):
            try:
                typed(one)
                break
            except (HardwareError, UsageError) as e:
                assert "--tp" in e.hint or "engine.replicas" in e.hint
                one = after(e.hint, one)
            except DoesNotFitError:
                break
        else:
            typed(one)
