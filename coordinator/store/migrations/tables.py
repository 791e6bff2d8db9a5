"""Every domain's tables on one metadata, for comparing with what a database has."""

import importlib
from typing import Final

from coordinator.store.schema import metadata

__all__ = ["metadata", "ours"]

for _module in (
    "access.forward",
    "access.store",
    "audit.chain",
    "enrollment.store",
    "inventory.store",
    "jobs.store",
    "protection.store",
    "protection.totals",
    "recovery.store",
    "statistics.store",
    "store.requests",
    "vault.store",
):
    importlib.import_module(f"coordinator.{_module}")

VERSION_TABLE: Final = "ts_schema"


def ours(name: str | None, kind: str, _: object) -> bool:
    """Guard rail 10 of the jobs: on SQLite the engine's tables share our namespace; autogenerate would drop them."""
    return kind != "table" or name in metadata.tables
