"""An NBD client of our own: reads exports of QEMU and others, and asks what is dirty and what is a hole."""
