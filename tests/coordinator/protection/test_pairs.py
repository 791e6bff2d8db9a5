"""Pairing clouds: what is refused and that refusing changes nothing."""

import pytest

from tests.fakes.control_plane import EMPTY
from tests.fakes.scene import POLICY, Scene
from tests.fakes.site import until
from twinsite.api.coordinator.v1 import admin_pb2, link_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Conflict, Denied, InvalidInput, NotFound, Precondition


def request(source: str = "gold-a", target: str = "gold-b", **policy: object) -> admin_pb2.CreatePairRequest:
    wanted = types_pb2.Policy()
    wanted.CopyFrom(POLICY)
    for name, value in policy.items():
        setattr(wanted, name, value)
    return admin_pb2.CreatePairRequest(source_cloud=source, target_cloud=target, policy=wanted)


async def test_a_pair_is_checked_and_shows_both_sides(sites: Scene):
    job = await sites.pair()
    assert job.state == "succeeded"
    pair = await sites.admin.pairs.Show(admin_pb2.ShowRequest(name="gold-a:gold-b"))
    assert (pair.source_cloud, pair.source_server) == ("gold-a", "vmm-a")
    assert (pair.target_cloud, pair.target_server) == ("gold-b", "vmm-b")
    assert pair.policy == POLICY
    clouds = {cloud.name: (cloud.role, cloud.pair) for cloud in (await sites.admin.clouds.List(EMPTY)).clouds}
    assert clouds == {"gold-a": ("primary", "gold-a:gold-b"), "gold-b": ("target", "gold-a:gold-b")}


async def test_wrong_pairs_are_refused_and_change_nothing(sites: Scene):
    sites.a.clouds.append(link_pb2.Cloud(name="empty", host_groups=[link_pb2.HostGroup(name="none")]))
    sites.a.report()

    async def known() -> bool:
        return "empty" in {cloud.name for cloud in (await sites.admin.clouds.List(EMPTY)).clouds}

    await until(known)
    for wrong, error, code in (
        (request(target="gold-a"), InvalidInput, "SAME_CLOUD"),
        (request(target="gold-x"), NotFound, "UNKNOWN"),
        (request(source="empty"), Precondition, "CLOUD_HAS_NO_HOST"),
        (request(target="empty"), Precondition, "CLOUD_HAS_NO_HOST"),
        (request(frequency_seconds=0), InvalidInput, "INVALID_POLICY"),
        (request(frequency_seconds=86401), InvalidInput, "INVALID_POLICY"),
        (request(additional_points=25), InvalidInput, "INVALID_POLICY"),
    ):
        with pytest.raises(error) as refused:
            await sites.admin.pairs.Create(wrong)
        assert refused.value.code == code
        assert refused.value.text("next_step")
    assert not (await sites.admin.pairs.List(EMPTY)).pairs
    assert not await sites.audited("pair.create")


async def test_a_cloud_is_in_one_pair_only_as_source_or_target(sites: Scene):
    await sites.b.host("b2", "silver-b")
    sites.b.report()
    await sites.until_clouds("silver-b")
    await sites.pair()
    for wrong in (request("gold-a", "silver-b"), request("silver-b", "gold-b"), request("gold-b", "silver-b")):
        with pytest.raises(Conflict) as refused:
            await sites.admin.pairs.Create(wrong)
        assert refused.value.code == "CLOUD_IS_PAIRED"


async def test_two_clouds_of_one_server_can_be_paired(sites: Scene):
    await sites.a.host("a2", "silver-a")
    sites.a.report()
    await sites.until_clouds("silver-a")
    answer = await sites.admin.pairs.Create(request("gold-a", "silver-a"))
    assert (await sites.ended(answer)).state == "succeeded"


async def test_clouds_of_one_name_are_told_apart_by_their_server(sites: Scene):
    await sites.b.host("b2", "gold-a")
    sites.b.report()

    async def twice() -> bool:
        return [cloud.name for cloud in (await sites.admin.clouds.List(EMPTY)).clouds].count("gold-a") == 2

    await until(twice)
    with pytest.raises(NotFound) as refused:
        await sites.admin.pairs.Create(request())
    assert refused.value.code == "AMBIGUOUS"
    answer = await sites.admin.pairs.Create(request("vmm-a/gold-a", "gold-b"))
    assert (await sites.ended(answer)).state == "succeeded"


async def test_a_dry_run_checks_and_changes_nothing(sites: Scene):
    wanted = request()
    wanted.dry_run = True
    assert not (await sites.admin.pairs.Create(wanted)).job_id
    assert not (await sites.admin.pairs.List(EMPTY)).pairs
    wanted.target_cloud = "gold-a"
    with pytest.raises(InvalidInput):
        await sites.admin.pairs.Create(wanted)


async def test_a_repeated_request_is_answered_and_not_repeated(sites: Scene):
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000001"),)
    first = await sites.admin.pairs.Create(request(), metadata=metadata)
    again = await sites.admin.pairs.Create(request(), metadata=metadata)
    assert first.job_id == again.job_id
    assert len((await sites.admin.pairs.List(EMPTY)).pairs) == 1


async def test_a_pair_in_use_is_not_removed_and_an_unused_one_frees_its_clouds(sites: Scene):
    await sites.protect()
    wanted = admin_pb2.RemoveRequest(name="gold-a:gold-b")
    with pytest.raises(Precondition) as refused:
        await sites.admin.pairs.Remove(wanted)
    assert refused.value.code == "PAIR_IN_USE"
    assert "web01" in str(refused.value)
    await sites.ended(await sites.admin.machines.Unprotect(admin_pb2.MachineActionRequest(name="web01")))
    wanted.dry_run = True
    assert (await sites.admin.pairs.Remove(wanted)).consequences
    assert (await sites.admin.pairs.List(EMPTY)).pairs
    await sites.admin.pairs.Remove(admin_pb2.RemoveRequest(name="gold-a:gold-b", reason="moving"))
    assert not (await sites.admin.pairs.List(EMPTY)).pairs
    assert await sites.audited("pair.remove") == [{"reason": "moving"}]
    assert (await sites.pair()).state == "succeeded"


async def test_a_viewer_sees_pairs_and_makes_none(sites: Scene):
    viewer = await sites.plane.identity.user("eve", "viewer")
    async with sites.plane.admin(viewer) as admin:
        await admin.pairs.List(EMPTY)
        with pytest.raises(Denied):
            await admin.pairs.Create(request())
