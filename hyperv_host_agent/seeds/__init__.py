"""Seeds: the content of a VM's disks on media, from the source host to the target host by whatever carries them.

A seed is a folder of parts and a manifest, encrypted to the target host and signed by the source host.
"""
