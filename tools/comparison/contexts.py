"""What a context axis is worth to long documents: memory, waiting and MFU of a rank, by its size.

python -m tools.comparison.contexts OUT     # OUT/contexts.json, .md and .png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder")
    args = parser.parse_args()
    from tools.comparison.context_plans import write

    print(write(args.output))


if __name__ == "__main__":
    run_program(main)
