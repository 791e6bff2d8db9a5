"""Long runs by hand: `python -m tests.simulation 0 20000`; the story of one seed: `python -m tests.simulation 229`."""

import sys

from tests.simulation.scenario import run
from tests.simulation.world import Violation


def main(arguments: list[str]) -> int:
    if len(arguments) == 1:
        story: list[str] = []
        try:
            run(int(arguments[0]), story=story)
        except Violation as violation:
            story.append(f"VIOLATION {violation}")
        print("\n".join(story))
        return 0
    failed = 0
    for seed in range(int(arguments[0]), int(arguments[1])):
        try:
            run(seed)
        except Exception as error:  # noqa: BLE001  # whatever it is, the seed is the finding
            failed += 1
            print(seed, type(error).__name__, error, flush=True)
    print(f"{failed} seeds failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
