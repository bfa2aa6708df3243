"""What plans say, as a table, a file of numbers and a picture.

python -m tools.comparison.plans published OUT     of runs whose speed was published: predicted against measured
python -m tools.comparison.plans contexts OUT      of long documents, by the size of the context axis
"""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("published", "contexts"))
    parser.add_argument("output", type=Path, help="folder, for WHAT.json, WHAT.md and WHAT.png")
    args = parser.parse_args()
    from tools.comparison import context_plans, published_plans

    plans = {"published": published_plans, "contexts": context_plans}
    print(plans[args.what].write(args.output))


if __name__ == "__main__":
    run_program(main)
