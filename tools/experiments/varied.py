"""Train with a part of the method replaced: `python -m tools.experiments.varied VARIANT CONFIG [key=value ...]`."""

from __future__ import annotations

import argparse
import importlib
import sys

from oneflow_dist.runtime import run_program


def replace_parts(variant: str) -> None:
    """Put the replacements of tools/experiments/variants/VARIANT in the places that they name; "": nothing."""
    if not variant:
        return
    for place, part in importlib.import_module(f"tools.experiments.variants.{variant}").replacements().items():
        module, _, path = place.partition(":")
        *parents, name = path.split(".")
        holder = importlib.import_module(module)
        for parent in parents:
            holder = getattr(holder, parent)
        setattr(holder, name, part)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", help="a module of tools/experiments/variants")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what oneflow_dist.train is given")
    args = parser.parse_args()
    from oneflow_dist import train

    replace_parts(args.variant)
    sys.argv[1:] = args.words
    train.main()


if __name__ == "__main__":
    run_program(main)
