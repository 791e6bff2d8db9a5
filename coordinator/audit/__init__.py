"""Who did what, in a log that shows when it was altered."""

from coordinator.audit.chain import Entry, recent, record, verify

__all__ = ["Entry", "recent", "record", "verify"]
