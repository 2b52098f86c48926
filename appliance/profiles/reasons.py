"""Why each value is what it is, where no rule says so: those asked for, of profiles, defaults."""

from __future__ import annotations

import msgspec

from appliance.profiles.schema import Evidence
from appliance.runtime.plan import Answer, Plan

WHY = {
    "model.path": "where the model that is served lies",
    "model.id": "the model's own name",
    "model.served_names": "the model's own name and `default` always work",
    "model.revision": "that of its files on the hub; a folder of your own has none",
    "model.load_format": "weights are read from the model's files",
    "model.chat_template": "the model's own is the one that it was trained with",
    "model.tool_parser": "the chat template tells it",
    "model.reasoning_parser": "the chat template tells it",
    "serve.host": "nobody but this machine, until somebody says otherwise",
    "serve.port": "where clients of such servers look",
    "serve.uds": "most clients know ports alone",
    "serve.uds_mode": "nobody but this user, until somebody says otherwise",
    "serve.max_queue": "more than engines run at once, so that a burst waits and is not refused",
    "serve.max_connections_per_address": "more than a client needs, too few for one to take all",
    "serve.keep_alive_comment_s": "some clients take a comment for an answer",
    "serve.keys_file": "no key was made; `appliance key add` makes one",
    "serve.no_auth": "strangers need a key",
    "serve.drain_s": "long enough for most answers, and shorter than what systemd waits",
    "serve.request_log": "who asked, how long it took, and nothing of what was said",
    "serve.request_log_mib": "some forty thousand requests a file",
    "serve.request_log_files": "a bound, so that no disk is filled",
    "schedule.policy": "no request waits for one that came later",
    "schedule.page_size": "the tree, the allocator and the kernels share pages of it",
    "schedule.max_prefill": "several short prompts share one step",
    "schedule.mixed_chunk": "on an H100 it gained less than noise",
    "schedule.conservativeness": "what requests will take is estimated as it is",
    "schedule.prefix_cache": "what was computed once is not computed again",
    "schedule.beside_filled": "with fewer pages in use, steps are about to have more rows",
    "schedule.depth": "the host prepares a step while the device computes the one before",
    "schedule.jump_forward": "text that a grammar forces needs no choice",
    "schedule.retract_every": "for tests alone",
    "engine.tp": "one GPU, as long as the model fits it",
    "engine.replicas": "one, as long as nobody asks for more",
    "engine.max_total_tokens": "as many as what is free after the load holds",
    "engine.ready_early": "a run answers a second or two sooner, padded a little more at first",
    "engine.try_links": "it names a pair of GPUs that hangs or is slow before a model is loaded",
    "engine.seed": "made-up weights are the same each time",
    "engine.profile_steps": "a trace is for who looks for one",
}
"""Of the defaults that no rule answers."""


OF_A_PROFILE: dict[str, str | tuple[str, str]] = {
    "model.dtype": "what such a machine computes fastest in",
    "model.quantization": "half the bytes to read for each token; answers change a little",
    "serve.frontends": "as many as keep up with the engines",
    "schedule.policy": WHY["schedule.policy"],
    "schedule.page_size": WHY["schedule.page_size"],
    "schedule.chunk": "as much of prompts as such a machine computes without delaying others long",
    "schedule.max_prefill": WHY["schedule.max_prefill"],
    "schedule.max_running": "as many as memory of this size has pages for",
    "schedule.mixed_chunk": ("prompts and answers share a step", WHY["schedule.mixed_chunk"]),
    "schedule.depth": WHY["schedule.depth"],
    "engine.device": "the machine that the profile is for",
    "engine.tp": "one model on as many devices as the profile is for",
    "engine.memory_fraction": "the rest is for the driver, and for what else comes up",
    "engine.attention": "the fastest that there is for such a machine",
    "engine.graphs": ("a captured step saves the host its launches", "a CPU captures nothing"),
}
"""Of what profiles set; of switches when on and when off."""

_ASKED = ("flag", "environment", "file")


def explained(plan: Plan, evidence: Evidence) -> Plan:
    """The same plan, each answer with a reason. evidence: what its profile stands on."""
    told = (
        a if a.reason else msgspec.structs.replace(a, reason=reason_of(a, evidence))
        for a in plan.answers
    )
    return msgspec.structs.replace(plan, answers=tuple(told))


def reason_of(answer: Answer, evidence: Evidence) -> str:
    """Of a value that no rule has answered. evidence: what its profile stands on."""
    measured = f"measured on {evidence.machine or 'such a machine'} {evidence.date}".rstrip()
    if answer.source == "default":
        known = evidence.measured and answer.field in evidence.fields
        return measured if known else WHY.get(answer.field, "its default")
    if answer.source.startswith("profile"):
        stands_on = evidence.of(answer.field)
        if stands_on == "measured":
            return measured
        why = OF_A_PROFILE.get(answer.field, "the profile has it so")
        if isinstance(why, tuple):
            why = why[not answer.value]
        return f"{why}; {stands_on}"
    return "asked for" if answer.source.startswith(_ASKED) else "this machine and model allow it"
