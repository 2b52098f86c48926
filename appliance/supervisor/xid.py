"""NVIDIA's critical error numbers (Xid): what each means and what to do about it."""

from __future__ import annotations

from typing import NamedTuple


class Xid(NamedTuple):
    meaning: str
    fix: str
    fatal: bool = True
    """Does not go away by itself."""


_RESET = "stop the run, then nvidia-smi --gpu-reset; if it comes again, have the GPU replaced"
_BOOT = "restart the machine; if it comes again, check seating, cables and power of the GPU"
_IDLE = "reset the GPU when it is idle"
_PROGRAM = "nothing if it stays alone: the engine is started again; else appliance doctor --bundle"

_KNOWN = {
    13: Xid("a program's kernel made a fault", _PROGRAM, False),
    31: Xid("a program touched memory that is not its own", _PROGRAM, False),
    43: Xid("the GPU stopped a program's work", _PROGRAM, False),
    45: Xid("the GPU's work was cleared after another error", _PROGRAM, False),
    48: Xid("memory error that could not be corrected", _RESET),
    61: Xid("the GPU's microcontroller halted", _RESET),
    62: Xid("the GPU's microcontroller halted", _RESET),
    63: Xid("a bad memory row is to be replaced by a spare", _IDLE, False),
    64: Xid("a bad memory row could not be replaced", _RESET),
    74: Xid("an NVLink failed", _BOOT),
    79: Xid("the GPU has fallen off the bus", _BOOT),
    92: Xid("many memory errors, corrected so far", _IDLE, False),
    94: Xid("memory error that hit one program only", _PROGRAM, False),
    95: Xid("memory error that may have hit every program", _RESET),
    119: Xid("the GPU's system processor does not answer", _RESET),
    120: Xid("the GPU's system processor met an error", _RESET),
    140: Xid("memory error that could not be corrected", _RESET),
}

_UNKNOWN = Xid("critical error", "NVIDIA's list of Xid errors has its meaning; appliance doctor")


def explain(number: int) -> Xid:
    return _KNOWN.get(number, _UNKNOWN)
