"""Between checkpoints and folders of Hugging Face: a trained model for transformers, a Llama to start training from."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from oneflow_dist.config import load_config
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("safetensors", help="write a checkpoint as a folder that transformers reads as a Llama")
    out.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    out.add_argument("output", type=Path, help="folder to make")
    out.add_argument("--weights", choices=("ema", "model"), default="ema", help="averaged, or as last trained")
    out.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    back = commands.add_parser("checkpoint", help="write the first checkpoint of a run from a folder of Hugging Face")
    back.add_argument("folder", type=Path, help="of a Llama 3, or made by `safetensors`")
    back.add_argument("config", help="TOML file of the run, as configs/oneflow_1b.toml")
    back.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch

    from tools.hugging_face import to_checkpoint, to_safetensors

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it should
    if args.command == "safetensors":
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
        to_safetensors(args.checkpoint, args.output, args.weights, dtype)
    else:
        to_checkpoint(args.folder, load_config(args.config, args.overrides))


if __name__ == "__main__":
    run_program(main)
