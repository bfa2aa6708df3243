"""What a stretch of a program allocates, communicates and multiplies, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._op_schema import OpSchema
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import oneflow_kernels.packed_attention  # noqa: F401 # registers the operations and their FLOPs
from oneflow_dist.model.axis import local_part

GATHER, SCATTER, REDUCE, BROADCAST = "all_gather", "reduce_scatter", "all_reduce", "broadcast"
# Each kind of operation that ranks do together: what it is called here, and which argument is its larger buffer.
COLLECTIVES: dict[Any, tuple[str, int | None]] = {
    torch.ops.c10d._allgather_base_: (GATHER, 0),
    torch.ops.c10d._reduce_scatter_base_: (SCATTER, 1),
    torch.ops.c10d.allreduce_: (REDUCE, 0),
    torch.ops.c10d.broadcast_: (BROADCAST, 0),
    torch.ops._c10d_functional.all_gather_into_tensor: (GATHER, None),  # None: what it returns
    torch.ops._c10d_functional.reduce_scatter_tensor: (SCATTER, 0),
    torch.ops._c10d_functional.all_reduce: (REDUCE, 0),
    torch.ops._c10d_functional.all_reduce_: (REDUCE, 0),
}
# What belongs to collectives but moves nothing that counts.
OTHERS = {torch.ops._c10d_functional.wait_tensor, torch.ops._c10d_functional._wrap_tensor_autograd}


@dataclass(frozen=True, slots=True, order=True)
class Collective:
    """An operation of a group of ranks."""

    kind: str
    group: str  # name of the process group
    num_bytes: int  # of its larger buffer on this rank: what is gathered, what is scattered, what is reduced


@dataclass(slots=True)
class Storage:
    """A stretch of memory, from its first use to its end."""

    kind: str
    changes: list[tuple[int, int]] = field(default_factory=list)  # (moment, bytes from then on)


class Recorder(TorchDispatchMode):
    """Inside `with Recorder() as recorder:`, every operation is seen.

    A storage that is alive when the backward pass begins and was made since the last one ended is an activation; what
    collectives gather is called gathered; who else lives is temporary until `name` says better.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[Collective] = Counter()
        self.flops: Counter[str] = Counter()  # by operation
        self.storages: list[Storage] = []
        self._moment = 0
        self._is_backward = False
        self._is_propagating = False
        self._open: dict[int, tuple[Storage, weakref.finalize[..., Any]]] = {}  # by id of a living storage

    def __enter__(self) -> Recorder:
        self._resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            result = self._resize(storage, size)
            self._see(storage).kind = "gathered"
            return result

        self._propagate = ShardingPropagator._propagate_tensor_meta_non_cached

        def propagate(propagator: ShardingPropagator, schema: OpSchema) -> Any:
            self._is_propagating = True
            result = self._propagate(propagator, schema)
            self._is_propagating = False
            return result

        # This is how FSDP frees what it has gathered.
        torch.UntypedStorage.resize_ = resize  # type: ignore[assignment, method-assign]
        # DTensor asks what an operation returns by trying it on fakes of its arguments: nothing that a step needs.
        ShardingPropagator._propagate_tensor_meta_non_cached = propagate  # type: ignore[assignment, method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = self._propagate  # type: ignore[method-assign]

    def name(self, kind: str, tensors: Iterable[Tensor]) -> int:
        """Call the storages of these tensors `kind`; returns their bytes."""
        storages = {id(s): s for s in (local_part(tensor).untyped_storage() for tensor in tensors)}
        for storage in storages.values():
            self._see(storage).kind = kind
        return sum(storage.nbytes() for storage in storages.values())

    def timeline(self) -> Iterator[Counter[str]]:
        """Bytes by kind after every change."""
        changes = sorted((moment, i, size) for i, s in enumerate(self.storages) for moment, size in s.changes)
        sizes = [0] * len(self.storages)
        now: Counter[str] = Counter()
        for _, index, size in changes:
            now[self.storages[index].kind] += size - sizes[index]
            sizes[index] = size
            yield now

    def peak(self) -> dict[str, int]:
        """Bytes by kind when they are most."""
        best: dict[str, int] = {}
        for now in self.timeline():
            if now.total() > sum(best.values()):
                best = dict(now)
        return best

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first its own work, which comes back here with plain tensors
        kwargs = kwargs or {}
        if self._is_propagating:
            return func(*args, **kwargs)
        self._enter_phase()
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        kind = "temporary"
        if packet in COLLECTIVES:
            self._count(packet, args, out)
            kind = "gathered" if COLLECTIVES[packet][0] == GATHER else kind
        else:
            assert func.namespace not in ("c10d", "_c10d_functional") or packet in OTHERS, f"{func}: not in COLLECTIVES"
        if packet in flop_registry:
            self.flops[str(packet)] += flop_registry[packet](*args, **kwargs, out_val=out)
        for tensor in tree_leaves((args, out) if kind == "gathered" else out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage(), kind)
        return out

    def _enter_phase(self) -> None:
        is_backward = torch._C._current_graph_task_id() != -1
        if is_backward and not self._is_backward:
            for storage, _ in self._open.values():
                storage.kind = "activations" if storage.kind == "temporary" else storage.kind
        self._is_backward = is_backward

    def _see(self, storage: torch.UntypedStorage, kind: str = "temporary") -> Storage:
        """Note a storage's size if it is new or has another size than before."""
        if id(storage) not in self._open:
            known = Storage(kind)
            self.storages.append(known)
            self._open[id(storage)] = known, weakref.finalize(storage, self._end, id(storage))
        known, _ = self._open[id(storage)]
        if not known.changes or known.changes[-1][1] != storage.nbytes():
            self._note(known, storage.nbytes())
        return known

    def _end(self, key: int) -> None:
        known, _ = self._open.pop(key)
        self._note(known, 0)

    def _note(self, known: Storage, size: int) -> None:
        self._moment += 1
        known.changes.append((self._moment, size))

    def _count(self, packet: Any, args: Any, out: Any) -> None:
        kind, place = COLLECTIVES[packet]
        buffers = out if place is None else args[place]
        num_bytes = sum(t.numel() * t.element_size() for t in tree_leaves(buffers) if isinstance(t, Tensor))
        self.collectives[Collective(kind, _group_of(args), num_bytes)] += 1


def _group_of(args: Any) -> str:
    """The name of the process group among an operation's arguments: itself, or its name."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            return dist.ProcessGroup.unbox(argument).group_name
    return next(argument for argument in reversed(args) if isinstance(argument, str))
