"""What the sites are made of: servers, clouds, host groups, hosts, networks, VMs, as their providers report them.

A thing that is no longer reported is marked missing and kept; a new name of a known id is a rename, and audited.
"""
