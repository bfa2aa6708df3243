"""Ask osv.dev what vulnerabilities are known of the versions in requirements.lock; any ends with code 1."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from packaging.requirements import Requirement

from oneflow_dist.runtime import run_program
from tools.lock import locked

DATABASE = "https://api.osv.dev"
PATIENCE = 10.0  # seconds


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path, nargs="?", default=Path("requirements.lock"), help="(%(default)s)")
    parser.add_argument("--database", default=DATABASE, metavar="URL", help="(%(default)s)")
    args = parser.parse_args()
    lines = [line for line in args.lock.read_text().splitlines() if line and not line.startswith("#")]
    requirements = [locked(line) for line in lines]
    try:
        found = vulnerabilities(requirements, args.database)
    except HTTPError:  # it answers, and does not understand us
        raise
    except (URLError, TimeoutError) as error:
        print(f"{args.lock}: NOT audited: {args.database} cannot be reached ({error})")
        return
    advice = "; put newer ones into it, then tools/lock.py" if found else ""
    for requirement, ids in found.items():
        print(f"{requirement}: {', '.join(ids)}; {args.database.replace('api.', '')}/vulnerability/{ids[0]}")
    print(f"{args.lock}: {len(found)} of {len(requirements)} versions have known vulnerabilities{advice}")
    sys.exit(bool(found))


def vulnerabilities(requirements: list[Requirement], database: str) -> dict[str, list[str]]:
    """The ids of what is known of each version that has any, by one question for all.

    Source: https://google.github.io/osv.dev/post-v1-querybatch
    """
    queries = [
        {"package": {"name": each.name, "ecosystem": "PyPI"}, "version": str(each.specifier).removeprefix("==")}
        for each in requirements
    ]
    question = Request(f"{database}/v1/querybatch", json.dumps({"queries": queries}).encode())
    with urlopen(question, timeout=PATIENCE) as answer:
        results = json.load(answer)["results"]
    return {
        f"{each.name}{each.specifier}": [vulnerability["id"] for vulnerability in result["vulns"]]
        for each, result in zip(requirements, results, strict=True)
        if result.get("vulns")
    }


if __name__ == "__main__":
    run_program(main)
