"""`make bench`: every benchmark there is, one after the other; figures are the lines that begin with BENCH."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "initial_copy",
    "initial_copy --rate 1gbit",
    "layer_write",
    "nbd_read",
    "delta",
    "lost_tracking",
    "rpo",
    "memory",
    "points",
)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    failed = []
    for name in BENCHMARKS:
        print(f"# {name}", flush=True)
        if subprocess.run([sys.executable, "-m", *f"bench.{name}".split()], cwd=root, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"did not run to the end: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
