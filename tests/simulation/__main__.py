"""Long runs by hand: `python -m tests.simulation 0 20000`; the story of one seed: `python -m tests.simulation 229`."""

import sys

from tests.simulation.many import results
from tests.simulation.scenario import run
from tests.simulation.world import Violation

_TELL = 500  # seeds between two words on how far it is


def main(arguments: list[str]) -> int:
    if len(arguments) == 1:
        story: list[str] = []
        try:
            run(int(arguments[0]), story=story)
        except Violation as violation:
            story.append(f"VIOLATION {violation}")
        print("\n".join(story))
        return 0
    first, end = map(int, arguments)
    failed = []
    for seed, _, problem in results(range(first, end)):
        if problem:
            failed.append(seed)
            print(seed, problem, flush=True)
        if (seed + 1) % _TELL == 0:
            print(f"{seed + 1} of {end}", file=sys.stderr, flush=True)
    print(f"{len(failed)} seeds failed: {failed[:50]}")
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
