"""Hypervisor backends: the VMs of one host."""
