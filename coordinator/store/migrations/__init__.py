"""Alembic revisions of our tables, and the metadata they are compared with."""
