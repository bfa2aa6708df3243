from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from oneflow_dist.planning.counter import BLOCKS, REST
from oneflow_dist.planning.events import Await
from oneflow_dist.planning.recorder import Recorder

MIB = 2**20


def test_memory_follows_what_lives() -> None:
    with Recorder() as recorder:
        a = torch.zeros(MIB // 4)
        b = a + 1.0
        del a
        c = b * 2.0
        view = c[: MIB // 8]
        del b, c
    sizes = [sum(now.values()) for now in recorder.timeline()]
    assert sizes == [MIB, 2 * MIB, MIB, 2 * MIB, MIB]
    assert recorder.peak() == {"temporary": 2 * MIB}
    assert view.untyped_storage().nbytes() == MIB


def test_what_waits_for_the_backward_pass_is_an_activation() -> None:
    weight = torch.ones(MIB // 4, requires_grad=True)
    with Recorder() as recorder:
        recorder.name("parameters", [weight])
        loss = (weight.exp() * 2.0).sum()  # the exponential is kept, its double is not
        loss.backward()
        assert weight.grad is not None
        recorder.name("gradients", [weight.grad])
    kinds = {storage.kind for storage in recorder.storages}
    assert kinds == {"parameters", "activations", "temporary", "gradients"}
    assert max(now["activations"] for now in recorder.timeline()) == MIB + 8  # and the loss, and its own gradient


def test_storages_that_are_resized_are_followed_and_count_as_gathered() -> None:
    tensor = torch.zeros(MIB // 4)
    with Recorder() as recorder:
        recorder.name("parameters", [tensor])
        tensor.untyped_storage().resize_(0)
        tensor.untyped_storage().resize_(MIB // 2)
    assert [dict(now) for now in recorder.timeline()] == [{"gathered": size} for size in (MIB, 0, MIB // 2)]


def test_resizing_is_as_before_afterwards() -> None:
    before = torch.UntypedStorage.resize_
    with Recorder():
        assert torch.UntypedStorage.resize_ is not before
    assert torch.UntypedStorage.resize_ is before


def test_products_are_counted_forward_and_backward() -> None:
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    with Recorder() as recorder:
        (a @ b).sum().backward()
    assert sum(call.flops for call in recorder.calls) == 3 * 2 * 3 * 5 * 7


def test_what_blocks_ask_for_is_told_apart_forward_and_backward() -> None:
    block, after = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    with Recorder([block]) as recorder:
        after(block(torch.ones(3, 4, requires_grad=True))).sum().backward()
    products = [call for call in recorder.calls if call.operation == "mm"]
    assert sorted(call.part for call in products) == sorted([BLOCKS] * 3 + [REST] * 3)
    assert sum(call.flops for call in products if call.part == BLOCKS) == 3 * 2 * 3 * 4 * 4


def test_the_end_of_a_backward_pass_is_noted_by_what_follows_it() -> None:
    weight = torch.ones(3, requires_grad=True)
    with Recorder() as recorder:
        for _ in range(2):
            (weight * 2.0).sum().backward()
        torch.zeros(3)
    assert [recorder.events[end - 1] for end in recorder.ends] == [Await("all")] * 2
    phases = [event[0] for event in recorder.events[: recorder.ends[0]] if isinstance(event, tuple)]
    assert phases == sorted(phases)
    assert set(phases) == {False, True}


def test_a_name_holds_a_storage_once() -> None:
    tensor = torch.zeros(100)
    with Recorder() as recorder:
        assert recorder.name("parameters", [tensor, tensor[:50], tensor.view(10, 10)]) == 400


def test_an_unknown_collective_is_not_overlooked(group_of_one: None) -> None:
    with Recorder(), pytest.raises(AssertionError, match="not in COLLECTIVES"):
        torch.distributed.all_to_all([torch.zeros(3)], [torch.zeros(3)])


def test_what_a_dtensor_tries_out_on_fakes_is_nobodys_memory(group_of_one: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    whole = distribute_tensor(torch.ones(37, 53), mesh, [Shard(0)])  # of a shape that no operation has been asked about
    with Recorder() as recorder:
        whole.sin()
    assert [storage.changes[0][1] for storage in recorder.storages] == [37 * 53 * 4]


def test_dtensors_are_tried_out_as_before_afterwards() -> None:
    before = ShardingPropagator._propagate_tensor_meta_non_cached
    with Recorder():
        assert ShardingPropagator._propagate_tensor_meta_non_cached is not before
    assert ShardingPropagator._propagate_tensor_meta_non_cached is before
