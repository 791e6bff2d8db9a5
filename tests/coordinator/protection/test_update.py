"""A pair's policy is changed: what is said before, what hosts are told, who may."""

import pytest

from tests.fakes.control_plane import EMPTY
from tests.fakes.scene import POLICY, Scene
from tests.fakes.site import machine, until
from twinsite import schedules
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Denied, InvalidInput, NotFound, Precondition

HOUR = 3600


def update(keep: str = "none", **fields) -> admin_pb2.UpdatePairRequest:
    wanted = types_pb2.Policy()
    wanted.CopyFrom(POLICY)
    for name, value in fields.items():
        if name.endswith("rates"):
            getattr(wanted, name).extend(map(schedules.parse_rate, value))
        elif name not in ("dry_run", "reason"):
            setattr(wanted, name, value)
    wanted.tiers.extend(schedules.parse_keep(keep))
    asked = {name: fields[name] for name in ("dry_run", "reason") if name in fields}
    return admin_pb2.UpdatePairRequest(name="gold-a:gold-b", policy=wanted, **asked)


async def test_a_new_policy_holds_at_once_and_says_which_points_go(sites: Scene):
    await sites.protect()
    for hours in (5, 4, 3, 2):
        sites.commit(age=hours * HOUR)

    async def seen() -> bool:
        return len(await sites.points()) == 5

    await until(seen)
    foretold = await sites.admin.pairs.Update(update(additional_points=0, frequency_seconds=5, dry_run=True))
    assert "frequency: 30s → 5s" in foretold.consequences
    assert "hourly points: 2 → 0" in foretold.consequences
    assert any("of 5 points of web01 go" in sentence for sentence in foretold.consequences)
    assert (await sites.admin.pairs.Show(admin_pb2.ShowRequest(name="gold-a:gold-b"))).policy == POLICY

    wanted = update("all:1h,1h:7d", vm_rates=["10MB/s mon-fri 08:00-18:00"], reason="ticket 7")
    answer = await sites.admin.pairs.Update(wanted)
    assert not any("points of" in sentence for sentence in answer.consequences)
    assert (await sites.admin.pairs.Show(admin_pb2.ShowRequest(name="gold-a:gold-b"))).policy == wanted.policy
    for site, host in ((sites.a, sites.source), (sites.b, sites.target)):
        await until(lambda site=site, host=host: site.assigned(host, sites.vm.id).policy == wanted.policy)
    (facts,) = await sites.audited("pair.update")
    assert facts["retention"] == "none → all:1h,1h:7d"
    assert facts["reason"] == "ticket 7"


async def test_a_policy_that_is_the_same_changes_nothing(sites: Scene):
    await sites.pair()
    answer = await sites.admin.pairs.Update(update())
    assert not answer.consequences
    assert "nothing was changed" in answer.warnings[0]
    assert not await sites.audited("pair.update")


async def test_a_repeated_update_is_answered_and_not_repeated(sites: Scene):
    await sites.pair()
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000009"),)
    first = await sites.admin.pairs.Update(update(frequency_seconds=5), metadata=metadata)
    await sites.admin.pairs.Update(update(frequency_seconds=60))
    assert await sites.admin.pairs.Update(update(frequency_seconds=5), metadata=metadata) == first
    shown = await sites.admin.pairs.Show(admin_pb2.ShowRequest(name="gold-a:gold-b"))
    assert shown.policy.frequency_seconds == 60


async def test_wrong_updates_are_refused_and_change_nothing(sites: Scene):
    await sites.pair()
    no_policy = admin_pb2.UpdatePairRequest(name="gold-a:gold-b")
    elsewhere = update()
    elsewhere.name = "no:pair"
    for wrong, error, code in (
        (no_policy, InvalidInput, "POLICY_MISSING"),
        (elsewhere, NotFound, "UNKNOWN"),
        (update(frequency_seconds=0), InvalidInput, "INVALID_POLICY"),
        (update(application_hours=2), InvalidInput, "APPLICATION_TOO_RARE"),
    ):
        with pytest.raises(error) as refused:
            await sites.admin.pairs.Update(wrong)
        assert refused.value.code == code
    viewer = await sites.plane.identity.user("eve", "viewer")
    async with sites.plane.admin(viewer) as admin:
        with pytest.raises(Denied):
            await admin.pairs.Update(update(frequency_seconds=5))
    assert (await sites.admin.pairs.List(EMPTY)).pairs[0].policy == POLICY


async def test_what_a_policy_cannot_keep_is_said_when_a_pair_is_made(sites: Scene):
    policy = types_pb2.Policy(frequency_seconds=300, tiers=schedules.parse_keep("30s:1h"))
    request = admin_pb2.CreatePairRequest(source_cloud="gold-a", target_cloud="gold-b", policy=policy, dry_run=True)
    assert "more than there will be" in (await sites.admin.pairs.Create(request)).warnings[0]


async def test_source_hosts_share_the_rate_of_their_link(sites: Scene):
    other = machine("web02")
    second = await sites.a.host("a2", "gold-a", other)
    sites.a.report()
    await sites.protect()
    await sites.admin.pairs.Update(update(link_rates=["10MB/s"]))

    def rate(host, vm) -> int:
        assigned = sites.a.assigned(host, vm.id)
        return assigned.policy.link_rates[0].bytes_per_second if assigned and assigned.policy.link_rates else 0

    await until(lambda: rate(sites.source, sites.vm) == 10_000_000)
    answer = await sites.admin.machines.Protect(admin_pb2.ProtectRequest(name="web02"))
    await until(lambda: rate(second, other) == 5_000_000)
    await until(lambda: rate(sites.source, sites.vm) == 5_000_000)
    await sites.plane.jobs.cancel(answer.job_id, "root")
    await sites.ended(answer)
    await until(lambda: rate(sites.source, sites.vm) == 10_000_000)


async def test_a_pair_that_is_checked_still_is_not_changed(sites: Scene):
    from coordinator.protection import store

    await sites.pair()
    async with sites.database.write() as connection:
        await connection.execute(store.pairs.update().values(active=False))
    with pytest.raises(Precondition) as refused:
        await sites.admin.pairs.Update(update(frequency_seconds=5))
    assert refused.value.code == "PAIR_NOT_READY"
