"""Change tracking of VMs under libvirt: checkpoints say what changed, a pull backup gives it to read."""
