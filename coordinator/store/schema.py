"""The metadata all domains' tables hang on. Names are prefixed: on SQLite the job engine shares the namespace."""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def table(name: str, *columns: sa.schema.SchemaItem) -> sa.Table:
    """A table of ours, `ts_<name>`. Instants are `sa.Double` seconds since 1970 UTC; ids are text."""
    return sa.Table(f"ts_{name}", metadata, *columns)
