"""`appliance show`: one model on this disk, as far as its own files tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from appliance import paths
from appliance.cli.models import revision_text
from appliance.cli.output import Output, gigabytes, table
from appliance.cli.prepare import DEFAULT_ID
from appliance.errors import ApplianceError
from appliance.hardware import detect
from appliance.hub import local, store
from appliance.profiles import store as profiles
from appliance.profiles.pick import verdict
from appliance.runtime.model.registry import read_spec
from appliance.runtime.spec import ModelSpec
from appliance.runtime.text.siblings import chat_sibling


@click.command()
@click.argument("model")
@click.option("--files", "want_files", is_flag=True, help="Every file and its size.")
@click.option("--template", "want_template", is_flag=True, help="The chat template.")
@click.option("--config", "want_config", is_flag=True, help="The config.json.")
@click.option("--fit", "want_fit", is_flag=True, help="Whether it fits, with every profile.")
@click.pass_obj
def show(
    out: Output, /, model: str, want_files: bool, want_template: bool, want_config: bool,
    want_fit: bool,
) -> None:  # fmt: skip
    """What MODEL is, as far as its own files tell."""
    name, folder, data = _identity(model)
    parts = []
    if want_template:
        data["template"] = local.chat_template(folder)
        parts.append(data["template"] or "(no chat template: a base model)")
    if want_config:
        data["config"] = local.read_json(folder / "config.json")
        parts.append((folder / "config.json").read_text().rstrip())
    if want_files:
        sizes = [(str(p.relative_to(folder)), p.stat().st_size) for p in local.files(folder)]
        data["files"] = [{"path": path, "size_bytes": size} for path, size in sizes]
        parts.append(table([[gigabytes(size), path] for path, size in sizes], right=(0,)))
    if want_fit:
        told = _fits(folder)
        data["fits"] = [{"profile": name, "fit": text} for name, text in told]
        parts.append(table([[n, text.replace(f" with profile {n}", "")] for n, text in told]))
    if parts:
        out.result("\n\n".join(parts), data)
    else:
        _tell_card(out, name, folder, data)


def _tell_card(out: Output, name: str, folder: Path, data: dict[str, Any]) -> None:
    card = local.card(folder)
    template = local.chat_template(folder) if card.chat_template else ""
    calls, reasoning = _forms(template)
    spec, why = _spec(folder)
    fit = verdict(local.read_json(folder / "config.json"), card.weight_bytes) if spec else None
    data |= {
        "path": str(folder),
        "architecture": spec.architecture if spec else None,
        "supported": spec is not None,
        "why_not": why or None,
        "dtype": spec.dtype if spec else None,
        "tensor_dtypes": list(card.dtypes),
        "context_tokens": spec.max_context if spec else None,
        "layers": spec.layers if spec else None,
        "weight_bytes": card.weight_bytes,
        "parameters": card.parameters,
        "license": card.license,
        "chat_template": card.chat_template,
        "chat_sibling": None if card.chat_template else chat_sibling(name) or None,
        "tool_calls": calls or None,
        "reasoning": reasoning or None,
        "fit": fit,
    }
    rows = [["model", name]]
    if "revision" in data:
        rows.append(["revision", f"{data['revision']} from {data['source']}"])
    rows += [
        ["architecture", spec.architecture if spec else why],
        ["parameters", _count(card.parameters)],
        ["dtype", ", ".join(card.dtypes) or "–"],
        ["context", f"{spec.max_context} tokens" if spec else "–"],
        ["size", gigabytes(card.weight_bytes)],
        ["licence", card.license or "–"],
        ["chat template", "yes" if card.chat_template else _base_text(data["chat_sibling"])],
        ["tool calls", _calls_text(calls, template)],
        ["reasoning", data["reasoning"] or "–"],
        ["this machine", fit or "–"],
        ["path", str(folder)],
    ]
    out.result(table(rows), data)


def _base_text(sibling: str | None) -> str:
    text = "no: a base model, completions only"
    return f"{text}; made for chats, by its maker's names: {sibling}" if sibling else text


def _forms(template: str) -> tuple[str, str]:
    """How the model writes calls and thoughts, as its template tells; empty without one."""
    if not template:
        return "", ""
    from appliance.runtime.text.reasoning import reasoning_form_of
    from appliance.runtime.text.tools.forms import tool_form_of

    return tool_form_of(template), reasoning_form_of(template)


def _calls_text(form: str, template: str) -> str:
    """What calls are read by when the model is served."""
    if not form:
        return "–"
    return form if "tools" in template else f"{form}: its template knows of no tools"


def _fits(folder: Path) -> list[tuple[str, str]]:
    """(profile, verdict) for every profile, each on the machine that it is for."""
    config, weights = local.read_json(folder / "config.json"), local.card(folder).weight_bytes
    here = detect()
    return [
        (name, verdict(config, weights, here, stored.profile))
        for name, stored in sorted(profiles.load().items())
    ]


def _identity(text: str) -> tuple[str, Path, dict[str, Any]]:
    data: dict[str, Any] = {"schema": "appliance.show/1"}
    if text == DEFAULT_ID:
        return text, paths.default_model(), data | {"name": text}
    if local.is_folder_name(text):
        folder = local.folder_of(text)
        return folder.name, folder, data | {"name": folder.name}
    model = store.find_model(text)
    known = {"name": model.name, "source": model.source, "revision": revision_text(model)}
    return model.name, model.folder, data | known | {"commit": model.commit}


def _spec(folder: Path) -> tuple[ModelSpec | None, str]:
    try:
        return read_spec(folder), ""
    except ApplianceError as e:
        return None, e.message


def _count(parameters: int | None) -> str:
    if parameters is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if parameters >= size:
            return f"{parameters / size:.2f} {unit}"
    return str(parameters)
