"""What the demonstration says: progress while it runs, one table, and one line for scripts."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from twinsite import units


class Mismatch(Exception):
    """Something that was claimed does not hold; the text says what differed."""


@dataclass(slots=True)
class Step:
    """One line of the table; bytes as the coordinator reports them."""

    name: str
    seconds: float = 0.0
    changed_bytes: int = 0
    wire_bytes: int = 0
    verified: str = ""


@dataclass(slots=True)
class Report:
    """`traffic` gives (bytes changed, bytes on the wire) so far, or None while nothing is replicated."""

    traffic: Callable[[], tuple[int, int] | None] = lambda: None
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        step = Step(name)
        began, before = time.monotonic(), self.traffic() or (0, 0)
        print(f"  … {name}", flush=True)
        yield step
        step.seconds = time.monotonic() - began
        after = self.traffic() or before
        step.changed_bytes, step.wire_bytes = after[0] - before[0], after[1] - before[1]
        self.steps.append(step)
        print(f"  ✓ {name}: {step.seconds:.1f} s  {step.verified}", flush=True)

    def table(self) -> str:
        columns = ("step", "seconds", "changed", "on the wire", "verified")
        rows = [
            (
                step.name,
                f"{step.seconds:.1f}",
                units.size(step.changed_bytes) if step.changed_bytes else "",
                units.size(step.wire_bytes) if step.wire_bytes else "",
                step.verified,
            )
            for step in self.steps
        ]
        widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
        rule = "  ".join("─" * width for width in widths)
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = "  ".join(cell.ljust(width) for cell, width in zip(columns, widths, strict=True)).rstrip()
        return "\n".join([head, rule, *lines])

    def line(self) -> str:
        """`DEMO {json}`: the figures for scripts."""
        steps = [
            {
                "name": step.name,
                "seconds": round(step.seconds, 2),
                "changed_bytes": step.changed_bytes,
                "wire_bytes": step.wire_bytes,
                "verified": step.verified,
            }
            for step in self.steps
        ]
        return "DEMO " + json.dumps({"steps": steps, **self.facts})
