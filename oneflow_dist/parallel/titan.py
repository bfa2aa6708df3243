"""What training takes from torchtitan, and nothing else of it: an upgrade touches this file and benchmark/peer.py."""

from __future__ import annotations

from collections.abc import Callable


def collect_garbage(every_steps: int) -> Callable[[int], None]:
    """Switch Python's own collector off and return what to call after each step: it collects in every so many.

    Then no rank stops to collect while the others wait for it. 0 leaves everything as it is, without torchtitan.

    Raises:
        ValueError: torchtitan is not installed.
    """
    if every_steps == 0:
        return lambda step: None
    try:
        from torchtitan.tools.utils import GarbageCollection
    except ImportError as error:
        raise ValueError(
            f"train.gc_every_steps: {every_steps} needs torchtitan ({error}); "
            "pip install tyro and pip install --no-deps torchtitan==0.2.2, or set train.gc_every_steps = 0"
        ) from error
    return GarbageCollection(gc_freq=every_steps).run
