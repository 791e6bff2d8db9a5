"""What two of Twinsite's three programs must agree on, and nothing else.

Identity, channels, errors on the wire, the settings loader, clock, extents and digests, grants, and the CLI that speaks
to the admin API. A thing enters this package only if two programs have to agree on it.
"""

from importlib.metadata import version

__version__ = version("twinsite")
