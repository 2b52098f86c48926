"""Quantization and layer name -> Scheme: one table."""

from __future__ import annotations

from collections.abc import Callable

import torch

from appliance.runtime.model.quant.plain import PlainScheme
from appliance.runtime.model.quant.scheme import Scheme

SchemeMaker = Callable[[int, int, torch.dtype, torch.device], Scheme]

SCHEMES: dict[str, SchemeMaker] = {"none": PlainScheme}
