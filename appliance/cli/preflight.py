"""What can be known to fail before anything is started: damaged files, a driver that is too old."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.cli import conditions
from appliance.cli.prepare import Prepared
from appliance.errors import HardwareError, NotFoundError
from appliance.hardware import detect
from appliance.runtime.text.siblings import chat_sibling


def check_start(prepared: Prepared) -> None:
    """IntegrityError, NotFoundError or HardwareError, each with its cure. Reads headers only."""
    config = prepared.plan.config
    if config.model.load_format != "dummy":
        _check_files(Path(config.model.path))
    if config.engine.device != "cuda":
        return
    checks = [conditions.torch_fits(prepared.hardware)]
    if config.engine.tp > 1:
        checks.append(conditions.shared_memory(prepared.hardware))
    for check in checks:
        if check.verdict == "block":
            raise HardwareError(
                f"this machine cannot compute with its GPUs: {check.name} is in the way\n"
                f"{check.found}",
                f"{check.fix}\nappliance doctor     checks all of it",
                code="APL-HW-005",
            )


def check_gpus(listed: str) -> None:
    """Each GPU of --gpus is one that can be seen: HardwareError, never a quiet start on fewer or on
    the CPU. listed: as the variable that hides the others has it by now."""
    hardware = detect()
    wanted = [word for word in listed.split(",") if word.strip()]
    if len(hardware.gpus) == len(wanted):
        return
    os.environ.pop("CUDA_VISIBLE_DEVICES")
    seen = detect()
    there = ", ".join(f"{g.index} ({g.name})" for g in seen.gpus) or "none"
    raise HardwareError(
        f"--gpus {listed} asks for {len(wanted)} and {len(hardware.gpus)} of them can be seen"
        + (f": {seen.problem}." if seen.problem else "."),
        f"GPUs here: {there}."
        + ("" if seen.gpus else "\nWithout --gpus it is served on the CPU: --profile cpu"),
        code="APL-HW-003",
    )


def base_model_note(prepared: Prepared) -> str:
    """What can be had of a model without a chat template; empty where there is nothing to say."""
    from appliance.hub import local

    model, spec = prepared.plan.config.model, prepared.spec
    if model.chat_template or spec.pooling or spec.labels or spec.headless:
        return ""
    if local.card(Path(model.path)).chat_template:
        return ""
    sibling = chat_sibling(model.id)
    other = f"made for chats, by its maker's names: {sibling}; or " if sibling else ""
    return f"A base model: completions, no chats.  {other}--chat-template FILE gives it a template"


def _check_files(folder: Path) -> None:
    # the hub's room is loaded for a model that has files, not for every `up`
    from appliance.hub import local

    if not local.card(folder).tokenizer:
        raise NotFoundError(
            f"{folder} holds no tokenizer.json, so its text cannot be read.",
            "Pull the model again, with every file: appliance pull MODEL",
            code="APL-NOT-008",
        )
