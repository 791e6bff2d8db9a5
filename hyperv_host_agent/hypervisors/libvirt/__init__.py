"""VMs of QEMU under libvirt. `library` alone imports libvirt-python, and only when it is used."""
