from collections.abc import Callable, Iterator

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from tests.fakes.libvirt_host import libvirt_host_running, need_libvirt
from tests.fakes.libvirt_tracked import TrackedDomain


@pytest.fixture(scope="module")
def host() -> Iterator[LibvirtHost]:
    """One for all tests of a file: each makes domains of its own."""
    need_libvirt()
    with libvirt_host_running() as host:
        yield host


@pytest.fixture
def tracked(host: LibvirtHost) -> Iterator[Callable[..., TrackedDomain]]:
    """Makes tracked domains, of which nothing is left afterwards."""
    made: list[TrackedDomain] = []

    def make(**options: object) -> TrackedDomain:
        made.append(TrackedDomain(host, f"vm{len(host.virsh('list', '--all', '--name').split())}", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for tracked in made:
        tracked.source.rest()
        tracked.source.stop()
        assert tracked.leftovers() == []
        if tracked.domain().is_active():
            host.virsh("destroy", tracked.guest.name)
        host.virsh("undefine", "--checkpoints-metadata", "--snapshots-metadata", tracked.guest.name, check=False)
        tracked.close()
