"""Build: all that a layer may ask for. A layer is given `(spec, build, name)`, reads no global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from appliance.kernels.ops import Ops, Rounding
from appliance.runtime.model.attention.backend import Backend
from appliance.runtime.model.parallel.comm import Comm
from appliance.runtime.model.parallel.mesh import Mesh
from appliance.runtime.model.quant.scheme import Scheme, Source
from appliance.runtime.model.quant.select import Wanted, select
from appliance.runtime.spec import QuantSpec

Place = Callable[[Source], None]


@dataclass(frozen=True, slots=True)
class Build:
    """places: checkpoint tensor name -> what puts it where it belongs; filled by the layers.

    offered: as places, for tensors that a checkpoint may lack.
    optional: names a checkpoint may hold and the model has no use for.
    """

    mesh: Mesh
    comm: Comm
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    attention: Backend
    context: int
    narrow_kv: bool = False
    """K and V are kept as 8-bit floats."""
    quantization: str = "none"
    fuse_rounding: bool = False
    """Norms and activations leave 8-bit floats to the linears that take them."""
    quant: QuantSpec | None = None
    """How the checkpoint is stored; None for plain."""
    places: dict[str, Place] = field(default_factory=dict)
    offered: dict[str, Place] = field(default_factory=dict)
    optional: set[str] = field(default_factory=set)

    def scheme(self, names: list[str], outs: int, ins: int) -> Scheme:
        """How the linears `names` of the checkpoint, merged into one, are stored on this rank."""
        wanted = Wanted(outs, ins, self.dtype, self.device, self.ops, self.quant)
        return select(self.quantization, names, wanted)

    def rounding(self, scheme: Scheme) -> Rounding | None:
        """How what comes before a linear of this scheme is to round its tokens; None: it is not."""
        return scheme.rounding if self.fuse_rounding else None

    def place(self, name: str, place: Place) -> None:
        assert name not in self.places, name
        self.places[name] = place
