"""The head of a sequence classifier: config.json -> the classes it tells."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from appliance.errors import UsageError
from appliance.runtime.spec import ModelSpec

MOST = 4096
_ACTIVATIONS: dict[str, Literal["softmax", "sigmoid", "none"]] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


def read(config: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """The spec with the classes of its head. UsageError names the field that makes no sense."""
    names = config.get("id2label")
    if names is not None and not isinstance(names, dict):
        raise UsageError("config.json: 'id2label' is not an object")
    # a config without either has two classes, which is what transformers makes of it
    count = config.get("num_labels") or len(names or ()) or 2
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MOST:
        raise UsageError(f"config.json: 'num_labels' is {count!r}, not a number from 1 to {MOST}")
    labels = tuple(str((names or {}).get(str(i), f"LABEL_{i}")) for i in range(count))
    kind = config.get("problem_type")
    if kind is not None and kind not in _ACTIVATIONS:
        raise UsageError(
            f"config.json: 'problem_type' is {kind!r}; known are {', '.join(_ACTIVATIONS)}"
        )
    # the softmax of a single class is always 1
    usual: Literal["softmax", "sigmoid"] = "sigmoid" if count == 1 else "softmax"
    return msgspec.structs.replace(
        spec, labels=labels, activation=_ACTIVATIONS[kind] if kind else usual
    )
