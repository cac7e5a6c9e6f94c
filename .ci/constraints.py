"""Writes constraints.txt from one resolution of everything that make installs (`make constraints`).

Names and versions only: where packages come from is the business of whoever installs them. One resolution for all the
environments, so that one version of a package satisfies every one of them.
"""

from __future__ import annotations

import json
import sys

HEADER = """\
# Every package that make installs, one version for all environments. Written by `make constraints`; do not edit.
# ml_dtypes and greenlet are older than they could be: tritonclient bounds them from above.
"""
OURS = "triptych"


def main() -> None:
    """Reads pip's installation report on standard input, writes constraints on standard output."""
    packages = (entry["metadata"] for entry in json.load(sys.stdin)["install"])
    # A local version, as in torch 2.13.0+cpu, says how this machine's copy was built, and would exclude all others.
    lines = {f"{package['name']}=={package['version'].partition('+')[0]}" for package in packages if package["name"] != OURS}
    sys.stdout.write(HEADER + "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.partition("==")[0].lower())))


if __name__ == "__main__":
    main()
