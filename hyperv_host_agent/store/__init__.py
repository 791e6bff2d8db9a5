"""The replica store: what a target host keeps of protected VMs, as chains of immutable qcow2 layers."""
