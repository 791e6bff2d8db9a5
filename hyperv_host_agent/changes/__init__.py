"""Change sources: which clusters of a VM's disks may differ since a cycle, and their content at one instant."""
