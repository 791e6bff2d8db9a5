"""The replication core: decides, and does nothing else.

State machines that take events and yield actions. No I/O, no clock, no randomness of their own, no await: the
whole pair of agents runs inside a deterministic simulator. `transfer.py` and `rpc.py` act.
"""
