"""FlashInfer over pages: plan once, run per layer; prefill and decode, eager and in a graph.

Shapes: T tokens, H query heads, K kv heads, D head size, P page size; all of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flashinfer
import numpy as np
import torch
from flashinfer.decode import fast_decode_plan
from torch import Tensor

_Planned = (
    flashinfer.BatchPrefillWithPagedKVCacheWrapper | flashinfer.BatchDecodeWithPagedKVCacheWrapper
)

_WORKSPACE = 384 << 20
_INT_WORKSPACE = 8 << 20


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    kv_dtype: torch.dtype


class LayerPages(NamedTuple):
    """k, v [pages, P, K, D] in Shape.kv_dtype, and what they are multiplied by to be K and V."""

    k: Tensor
    v: Tensor
    k_scale: float
    v_scale: float

    @property
    def unscaled(self) -> bool:
        return self.k_scale == 1.0 and self.v_scale == 1.0


@dataclass(frozen=True)
class PrefillTables:
    """Device tables a captured prefill reads: queries, pages int32 [R + 1] (tokens and pages before
    each row), last_len int32 [R], indices int32 [many]. Rows that are not used have no tokens."""

    queries: Tensor
    pages: Tensor
    last_len: Tensor
    indices: Tensor


def _run(wrapper: _Planned, q: Tensor, pages: LayerPages, out: Tensor) -> None:
    """The scales are numbers, not tensors: k's is folded into the softmax's, and a captured pass
    keeps them. A scale of one costs nothing."""
    if pages.unscaled:
        wrapper.run(q, (pages.k, pages.v), out=out)
    else:
        wrapper.run(q, (pages.k, pages.v), k_scale=pages.k_scale, v_scale=pages.v_scale, out=out)


_GROUPS = (1, 2, 3, 4, 8)
"""Query heads to a key-value head that FlashInfer's decode kernels know; others go through those of
a prompt, which multiply by tensor cores."""


class Workspace:
    """Device memory FlashInfer writes partial results to; kernels use it one after the other."""

    def __init__(self, device: torch.device, shape: Shape) -> None:
        """A decode step through a prompt's kernels keeps more parts of rows."""
        size = _WORKSPACE if shape.heads // shape.kv_heads in _GROUPS else 2 * _WORKSPACE
        self.device = device
        self.floats = torch.zeros(size, dtype=torch.uint8, device=device)


class PagedAttention:
    """Attention with one window over the pages of a rank. window 0: all keys."""

    def __init__(self, shape: Shape, window: int, workspace: Workspace, prefill: str) -> None:
        self._shape = shape
        self._window_left = window - 1 if window else -1
        self._workspace = workspace
        # tables of the plan in force: prefill, and decode (eager or captured, never both)
        ints = [
            torch.empty(_INT_WORKSPACE, dtype=torch.uint8, device=workspace.device)
            for _ in range(2)
        ]
        self._prefill_ints, self._decode_ints = ints
        self._backend = prefill
        self._prefill_graphs: dict[int, flashinfer.BatchPrefillWithPagedKVCacheWrapper] = {}
        self._prefill_pinned: Tensor | None = None
        self._prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            workspace.floats, "NHD", backend=prefill
        )
        self._prefill.reset_workspace_buffer(workspace.floats, ints[0])
        self._as_prompt = shape.heads // shape.kv_heads not in _GROUPS
        self._decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace.floats, "NHD", use_tensor_cores=self._as_prompt
        )
        self._decode.reset_workspace_buffer(workspace.floats, ints[1])
        self._graphs: dict[int, flashinfer.BatchDecodeWithPagedKVCacheWrapper] = {}
        self._pinned: Tensor | None = None
        self._common: flashinfer.BatchPrefillWithPagedKVCacheWrapper | None = None
        self._planned = torch.cuda.Event()

    def _wait_for_last_plan(self) -> None:
        # FlashInfer stages a plan in one pinned buffer; it must have left before it is written
        self._planned.synchronize()

    def plan_prefill(
        self, qo_indptr: np.ndarray, kv_indptr: np.ndarray, last_len: np.ndarray, indices: Tensor
    ) -> None:
        """qo_indptr, kv_indptr int32 [R + 1], last_len int32 [R] on the host; indices on device."""
        s = self._shape
        self._wait_for_last_plan()
        self._prefill.plan(
            torch.from_numpy(qo_indptr),
            torch.from_numpy(kv_indptr),
            indices,
            torch.from_numpy(last_len),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            causal=True,
            window_left=self._window_left,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
        )
        self._planned.record()

    def plan_prefill_graph(
        self,
        tokens: int,
        queries: np.ndarray,
        pages: np.ndarray,
        last_len: np.ndarray,
        tables: PrefillTables,
    ) -> None:
        """Plans the captured prefill of `tokens` tokens. queries, pages int32 [R + 1], last_len
        int32 [R] on the host; tables.indices holds the page lists. The first plan of a size must
        be for `tokens` tokens."""
        s = self._shape
        self._wait_for_last_plan()
        wrapper = self._prefill_graphs.get(tokens)
        if wrapper is None:
            wrapper = self._prefill_graphs[tokens] = self._prefill_graph_wrapper(tables)
        wrapper.plan(
            torch.from_numpy(queries),
            torch.from_numpy(pages),
            tables.indices[: int(pages[-1])],
            torch.from_numpy(last_len),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            causal=True,
            window_left=self._window_left,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
        )
        self._planned.record()

    def _prefill_graph_wrapper(
        self, tables: PrefillTables
    ) -> flashinfer.BatchPrefillWithPagedKVCacheWrapper:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace.floats,
            "NHD",
            use_cuda_graph=True,
            qo_indptr_buf=tables.queries,
            paged_kv_indptr_buf=tables.pages,
            paged_kv_indices_buf=tables.indices,
            paged_kv_last_page_len_buf=tables.last_len,
            backend=self._backend,
        )
        wrapper.reset_workspace_buffer(self._workspace.floats, self._prefill_ints)
        if self._prefill_pinned is None:
            self._prefill_pinned = wrapper._pin_memory_int_workspace_buffer
        wrapper._pin_memory_int_workspace_buffer = self._prefill_pinned
        return wrapper

    def run_prefill_graph(self, tokens: int, q_THD: Tensor, pages: LayerPages, out: Tensor) -> None:
        _run(self._prefill_graphs[tokens], q_THD, pages, out)

    def plan_decode(self, kv_indptr: np.ndarray, last_len: np.ndarray, indices: Tensor) -> None:
        s = self._shape
        self._wait_for_last_plan()
        self._decode.plan(
            torch.from_numpy(kv_indptr),
            indices,
            torch.from_numpy(last_len),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            window_left=self._window_left,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
        )
        self._planned.record()

    def plan_shared(
        self,
        queries: np.ndarray,
        common_indptr: np.ndarray,
        common: Tensor,
        own_indptr: np.ndarray,
        last_len: np.ndarray,
        own: Tensor,
    ) -> None:
        """Decode rows in groups: queries int32 [groups + 1], rows before each group from the first
        row on; common_indptr, common: the full pages of each group; own_indptr, last_len, own: of
        every row, the pages after those it shares."""
        s = self._shape
        self._wait_for_last_plan()
        if self._common is None:
            # the same kernels as the prefill's would not do: FA3 takes no 8-bit keys
            self._common = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self._workspace.floats, "NHD", backend="fa2"
            )
        self._common.plan(
            torch.from_numpy(queries),
            torch.from_numpy(common_indptr),
            common,
            torch.full((len(queries) - 1,), s.page_size, dtype=torch.int32),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            causal=False,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
        )
        self.plan_decode(own_indptr, last_len, own)

    def run_shared(self, q_BHD: Tensor, grouped: int, pages: LayerPages, out: Tensor) -> None:
        """grouped: rows that are in groups. Both parts tell the logarithm of their sums in base 2,
        which is what the merge takes."""
        assert self._common is not None
        scales = {} if pages.unscaled else {"k_scale": pages.k_scale, "v_scale": pages.v_scale}
        kv = pages.k, pages.v
        _, total = self._decode.run(q_BHD, kv, out=out, return_lse=True, **scales)
        part, part_total = self._common.run(q_BHD[:grouped], kv, return_lse=True, **scales)
        flashinfer.merge_state_in_place(out[:grouped], total[:grouped], part, part_total)

    def run_prefill(self, q_THD: Tensor, pages: LayerPages, out: Tensor) -> None:
        _run(self._prefill, q_THD, pages, out)

    def run_decode(self, q_BHD: Tensor, pages: LayerPages, out: Tensor) -> None:
        _run(self._decode, q_BHD, pages, out)

    def plan_graph(
        self, rows: int, host_indptr: np.ndarray, indptr: Tensor, last_len: Tensor, indices: Tensor
    ) -> None:
        """Plans the captured pass over `rows` rows; the tables are the ones its kernels read."""
        s = self._shape
        self._wait_for_last_plan()
        wrapper = self._graphs.get(rows)
        if wrapper is None:
            wrapper = self._graph_wrapper(rows, indptr, last_len, indices)
        fast_decode_plan(
            wrapper,
            indptr,
            indices,
            # its length counts, and how full a last page is at most: the host does not know more
            torch.ones(rows, dtype=torch.int32),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            window_left=self._window_left,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
            global_override_indptr_cpu=torch.from_numpy(host_indptr),
        )
        self._planned.record()

    def _graph_wrapper(
        self, rows: int, indptr: Tensor, last_len: Tensor, indices: Tensor
    ) -> flashinfer.BatchDecodeWithPagedKVCacheWrapper:
        s = self._shape
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace.floats,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=self._as_prompt,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=last_len,
        )
        wrapper.reset_workspace_buffer(self._workspace.floats, self._decode_ints)
        # one pinned buffer for all sizes: only one of them is planned at a time
        if self._pinned is None:
            self._pinned = wrapper._pin_memory_int_workspace_buffer
        wrapper._pin_memory_int_workspace_buffer = self._pinned
        # the full plan once: it looks the module up; later ones only compute. It writes the
        # tables of one-page rows, so what the caller has in them is put back
        kept = indptr.clone(), last_len.clone()
        wrapper.plan(
            torch.arange(rows + 1, dtype=torch.int32),
            indices[:rows],
            torch.ones(rows, dtype=torch.int32),
            s.heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            window_left=self._window_left,
            q_data_type=s.dtype,
            kv_data_type=s.kv_dtype,
        )
        indptr.copy_(kept[0])
        last_len.copy_(kept[1])
        torch.cuda.current_stream().synchronize()
        self._graphs[rows] = wrapper
        return wrapper

    def run_graph(self, rows: int, q_BHD: Tensor, pages: LayerPages, out: Tensor) -> None:
        _run(self._graphs[rows], q_BHD, pages, out)
