"""What plans say of runs whose speed was published: predicted against measured, with nothing left out.

python -m tools.comparison.published OUT     # OUT/published.json, .md and .png
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
    from tools.comparison.published_plans import write

    print(write(args.output))


if __name__ == "__main__":
    run_program(main)
