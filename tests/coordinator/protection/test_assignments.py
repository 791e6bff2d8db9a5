"""What hosts are told: versions that only rise, grants that never run out."""

from tests.fakes.scene import Scene
from tests.fakes.site import GIB, until
from twinsite import grants
from twinsite.api.types.v1 import types_pb2


def grant_of(sites: Scene, assignment: types_pb2.Assignment) -> grants.Grant:
    signer = sites.plane.identity.authority.signer
    return grants.verify(assignment.grant, {signer.key_id: signer.public}, sites.clock.now())


async def test_versions_rise_with_every_change_and_stand_still_without(sites: Scene):
    await sites.protect()
    version = sites.a.assignments[sites.source.id].version
    await sites.plane.reports.reconcile()
    await sites.plane.reports.reconcile()
    async with sites.a.connected():
        await until(lambda: sites.a.versions[-1] == (sites.source.id, version))
    seen = [number for host, number in sites.a.versions if host == sites.source.id]
    assert seen == sorted(seen)


async def test_a_provider_that_is_ahead_of_a_lost_database_is_overtaken(sites: Scene):
    await sites.protect()
    sites.a.assignments[sites.source.id].version = 900
    async with sites.a.connected():
        await until(lambda: sites.a.assignments[sites.source.id].version == 901)
    assert sites.a.assigned(sites.source, sites.vm.id) is not None


async def test_a_host_without_work_is_told_so(sites: Scene):
    await until(lambda: sites.source.id in sites.a.assignments)
    assert not sites.a.assignments[sites.source.id].assignments


async def test_grants_are_renewed_at_half_their_life(sites: Scene):
    await sites.protect()
    first = grant_of(sites, sites.a.assigned(sites.source, sites.vm.id))
    sites.clock.advance(3 * 86400)
    await sites.plane.reports.reconcile()
    assert grant_of(sites, sites.a.assigned(sites.source, sites.vm.id)) == first
    sites.clock.advance(86400)
    await sites.plane.reports.reconcile()
    await until(lambda: grant_of(sites, sites.a.assigned(sites.source, sites.vm.id)) != first)
    await until(lambda: grant_of(sites, sites.b.assigned(sites.target, sites.vm.id)) != first)
    second = grant_of(sites, sites.a.assigned(sites.source, sites.vm.id))
    assert second.not_after == int(sites.clock.now()) + 7 * 86400
    assert second == grant_of(sites, sites.b.assigned(sites.target, sites.vm.id))


async def test_a_grown_disk_and_a_new_name_reach_both_hosts(sites: Scene):
    await sites.protect()
    sites.vm.disks[1].size_bytes = 7 * GIB
    sites.vm.name = "web02"
    sites.a.report()

    def granted() -> bool:
        grant = grant_of(sites, sites.b.assigned(sites.target, sites.vm.id))
        return dict(grant.disks)[sites.vm.disks[1].id] == 7 * GIB and grant.vm_name == "web02"

    await until(granted)
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id).vm_name == "web02")
    assert (await sites.audited("vm.renamed"))[0]["from"] == "web01"
    assert (await sites.show()).name == "web02"


async def test_a_host_that_lists_no_disk_does_not_shrink_the_grant(sites: Scene):
    await sites.protect()
    before = grant_of(sites, sites.a.assigned(sites.source, sites.vm.id))
    disks = list(sites.vm.disks)
    del sites.vm.disks[:]
    sites.a.report()

    async def seen() -> bool:
        return not (await sites.show()).machine.disks

    await until(seen)
    await sites.plane.reports.reconcile()
    assert grant_of(sites, sites.a.assigned(sites.source, sites.vm.id)) == before
    sites.vm.disks.extend(disks)


async def test_a_target_that_moved_to_another_address_is_found(sites: Scene):
    await sites.protect()
    sites.target.address = "127.0.0.1:9999"
    sites.b.report()
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id).peer_address == "127.0.0.1:9999")
