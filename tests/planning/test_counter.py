from __future__ import annotations

import torch

from oneflow_dist.planning.counter import part_on_stack
from oneflow_dist.planning.recorder import Recorder


def test_bytes_are_those_that_are_read_and_written_and_views_cost_nothing() -> None:
    x, y, place = torch.zeros(4, 8), torch.ones(4, 8), torch.tensor([2, 0])
    with Recorder() as recorder:
        total = x + y  # reads two, writes one
        x.add_(y)
        x.copy_(y)
        x.zero_()
        x.view(8, 4).t()
        x.copy_(x)
        total.index_select(0, place)
        torch.empty(3)
        x.mm(y.t())
    found = [(call.operation, call.num_bytes) for call in recorder.calls]
    assert found == [
        ("add", 3 * 128),
        ("add_", 3 * 128),
        ("copy_", 2 * 128),
        ("zero_", 128),
        ("index_select", 2 * 64),
        ("mm", 2 * 128 + 64),
    ]
    assert recorder.calls[-1].flops == 2 * 4 * 8 * 4


def test_adamw_reads_and_writes_weights_and_moments_and_gradients_that_it_divides() -> None:
    parts = [[torch.ones(16)] for _ in range(4)]
    rule = {"lr": 0.1, "beta1": 0.9, "beta2": 0.9, "weight_decay": 0.0, "eps": 1e-8}
    clock = [torch.ones(())]
    for scale, passes in ((None, 7), (torch.ones(()), 8)):
        with Recorder() as recorder:
            torch._fused_adamw_(*parts, [], clock, **rule, amsgrad=False, maximize=False, grad_scale=scale)
        assert [call.num_bytes for call in recorder.calls] == [passes * 64]


def test_a_part_is_known_by_the_innermost_function_that_has_a_name() -> None:
    assert part_on_stack() is None
    names: dict[str, object] = {"part_on_stack": part_on_stack}
    code = "def step():\n    return part_on_stack()\ndef other():\n    return step()"
    exec(compile(code, "/somewhere/oneflow_dist/optim.py", "exec"), names)
    assert names["other"]() == "AdamW"  # type: ignore[operator]
