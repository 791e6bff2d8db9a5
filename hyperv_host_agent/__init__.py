"""The host agent: the data plane on one hypervisor host.

Tracks changes, sends and receives cycles, keeps the replica store, starts and stops VMs through its hypervisor backend.
"""
