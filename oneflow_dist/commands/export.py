"""Write a checkpoint as a folder that transformers reads as a Llama, and that a run can start from (init.path)."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged, or as last trained")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch

    from oneflow_dist.commands.hugging_face import to_safetensors

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it should
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    to_safetensors(args.checkpoint, args.output, args.weights, dtype)


if __name__ == "__main__":
    run_program(main)
