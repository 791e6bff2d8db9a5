"""The demonstration and the laboratory it runs in: five real processes, two sites, one VM, on loopback.

`python -m demo` walks the source document's steps; the system tests use the same laboratory.
"""
