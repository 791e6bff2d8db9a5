"""The embedded hypervisor: VMs are folders, and their guests are small processes that write provable records.

It needs no virtualization, so a whole site runs on any machine; what a guest writes shows whether anything was lost,
torn or reordered on the way to the other site.
"""

from hyperv_host_agent.hypervisors.embedded.hypervisor import EmbeddedHypervisor

__all__ = ["EmbeddedHypervisor"]
