"""Test failovers and failovers: what is refused, what will happen, and the jobs that make it happen."""
