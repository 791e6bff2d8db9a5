from tests.fakes.libvirt_host import libvirt_host, libvirt_hosts

__all__ = ["libvirt_host", "libvirt_hosts"]
