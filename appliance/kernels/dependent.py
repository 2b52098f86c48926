"""Triton kernels that begin before the kernel in front of them has ended (programmatic dependent
launch, GPUs since Hopper): what a launch takes then passes while that one ends.

Such a kernel may read what was there before its step at once, and what the step made only behind
`behind`; it writes nothing before that. Then all that was queued before it is done, since each
kernel in front has waited so itself.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def behind():
    """The kernel that comes next may begin; this one waits for the one in front."""
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


def launched(dependent: bool) -> dict[str, bool]:
    """How a kernel is launched that has the constant DEPENDENT. Else nothing is said: triton's
    versions that do not know it take other launches as before."""
    return {"launch_pdl": True} if dependent else {}
