"""Which VMs are protected through which cloud pair, how their replication does, and what each host has to do for it."""
