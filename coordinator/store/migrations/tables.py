"""Every domain's tables on one metadata, for comparing with what a database has."""

from typing import Final

import coordinator.audit.chain
import coordinator.jobs.store
import coordinator.store.requests
from coordinator.store.schema import metadata

__all__ = ["metadata", "ours"]

VERSION_TABLE: Final = "ts_schema"


def ours(name: str | None, kind: str, _: object) -> bool:
    """Guard rail 10 of the jobs: on SQLite the engine's tables share our namespace; autogenerate would drop them."""
    return kind != "table" or name in metadata.tables
