"""What a stretch of a program allocates, computes and sends, in order, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._op_schema import OpSchema
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oneflow_dist.model.axis import local_part
from oneflow_dist.planning.counter import BLOCKS, REST, call_of, part_on_stack
from oneflow_dist.planning.events import BROADCAST, GATHER, REDUCE, SCATTER, SWAP, Await, Call, Collective, Send

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
    torch.ops._c10d_functional.all_to_all_single: (SWAP, 0),
}
# What belongs to collectives but moves nothing that counts.
OTHERS = {torch.ops._c10d_functional.wait_tensor, torch.ops._c10d_functional._wrap_tensor_autograd}
# What FSDP2 does first with what it has gathered, and before it scatters: there its stream waits.
WAITS = {torch.ops.fsdp.split_with_sizes_copy: Await("gather"), torch.ops.fsdp.chunk_cat: Await("scatter")}


@dataclass(slots=True)
class Storage:
    """A stretch of memory, from its first use to its end."""

    kind: str
    changes: list[tuple[int, int]] = field(default_factory=list)  # (moment, bytes from then on)


class Recorder(TorchDispatchMode):
    """Inside `with Recorder(blocks) as recorder:`, every operation is seen; those of the blocks are told apart.

    A storage that is alive when the backward pass begins and was made since the last one ended is an activation; what
    collectives gather is called gathered; who else lives is temporary until `name` says better.
    """

    def __init__(self, blocks: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.events: list[tuple[bool, Call] | Send | Await] = []  # a call with whether it is of a backward pass
        self.ends: list[int] = []  # of backward passes, in `events`
        self.storages: list[Storage] = []
        self._phases: list[str] = []  # of every change of memory
        self._is_backward = False
        self._is_propagating = False
        self._blocks, self._depth = list(blocks), 0
        self._handles: list[Any] = []
        self._open: dict[int, tuple[Storage, weakref.finalize[..., Any]]] = {}  # by id of a living storage

    @property
    def collectives(self) -> Counter[Collective]:
        """How often each was sent."""
        return Counter(event.collective for event in self.events if isinstance(event, Send))

    @property
    def calls(self) -> list[Call]:
        """All work, in order."""
        return [event[1] for event in self.events if isinstance(event, tuple)]

    def __enter__(self) -> Recorder:
        for block in self._blocks:
            self._handles += [
                block.register_forward_pre_hook(self._begin),
                block.register_forward_hook(self._finish),
                block.register_full_backward_pre_hook(self._begin),
                block.register_full_backward_hook(self._finish),
            ]
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
        for handle in self._handles:
            handle.remove()
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        ShardingPropagator._propagate_tensor_meta_non_cached = self._propagate  # type: ignore[method-assign]

    def _begin(self, *_: Any) -> None:
        self._depth += 1

    def _finish(self, *_: Any) -> None:
        self._depth -= 1

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

    def peaks(self) -> dict[str, dict[str, int]]:
        """Bytes by kind when they are most, of each phase: backward passes so far, which way, in blocks or not."""
        best: dict[str, dict[str, int]] = {}
        for phase, now in zip(self._phases, self.timeline(), strict=True):
            if now.total() > sum(best.get(phase, {}).values()):
                best[phase] = dict(now)
        return best

    def peak(self) -> dict[str, int]:
        """Bytes by kind when they are most."""
        return highest(self.peaks())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # first its own work, which comes back here with plain tensors
        kwargs = kwargs or {}
        if self._is_propagating:
            return func(*args, **kwargs)
        self._enter_phase()
        out = func(*args, **kwargs)
        kind = self._note_event(func, args, kwargs, out)
        for tensor in tree_leaves((args, out) if kind == "gathered" else out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage(), kind)
        return out

    def _note_event(self, func: Any, args: Any, kwargs: Any, out: Any) -> str:
        """Returns the kind of memory that comes out."""
        packet = func._overloadpacket
        if packet in COLLECTIVES:
            kind, place = COLLECTIVES[packet]
            collective = Collective(kind, _group_of(args), _size(out if place is None else args[place]))
            self.events.append(Send(collective, is_fsdp=part_on_stack() == "FSDP"))
            return "gathered" if kind == GATHER else "temporary"
        assert func.namespace not in ("c10d", "_c10d_functional") or packet in OTHERS, f"{func}: not in COLLECTIVES"
        if packet in WAITS:
            self.events.append(WAITS[packet])
        call = call_of(func, args, kwargs, out, BLOCKS if self._depth else REST)
        if call is not None:
            self.events.append((self._is_backward, call))
        return "temporary"

    def _enter_phase(self) -> None:
        is_backward = torch._C._current_graph_task_id() != -1
        if self._is_backward and not is_backward:
            self.events.append(Await("all"))
            self.ends.append(len(self.events))
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
        known.changes.append((len(self._phases), size))
        way, place = "backward" if self._is_backward else "forward", BLOCKS if self._depth else REST
        self._phases.append(f"{len(self.ends)} {way}, {place}")


def highest(peaks: dict[str, dict[str, int]]) -> dict[str, int]:
    """Of the peaks of all phases."""
    return max(peaks.values(), key=lambda peak: sum(peak.values()), default={})


def _size(buffers: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(buffers) if isinstance(t, Tensor))


def _group_of(args: Any) -> str:
    """The name of the process group among an operation's arguments: itself, or its name."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            return dist.ProcessGroup.unbox(argument).group_name
    return next(argument for argument in reversed(args) if isinstance(argument, str))
