"""What both hosts say before a VM is protected reaches whoever asks."""

from tests.fakes.scene import Scene
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2

NATIVE = types_pb2.NativeDescription(format="libvirt-domain", document="<domain/>")


def request(**fields: object) -> admin_pb2.ProtectRequest:
    return admin_pb2.ProtectRequest(name="web01", **fields)  # type: ignore[arg-type]  # the test's own


def described(sites: Scene) -> None:
    """The source host has a native description, which it tells when it is asked, and not in its inventory."""
    sites.source.native = NATIVE
    sites.source.findings = "warning: vdb is raw"
    sites.target.findings = "warning: this host has no network 'lan'"


async def test_a_dry_run_asks_both_hosts_and_changes_nothing(sites: Scene):
    await sites.pair()
    described(sites)
    foretold = await sites.admin.machines.Protect(request(dry_run=True, ask_hosts=True))
    job = await sites.ended(foretold)
    assert (job.kind, job.state) == ("vm.check", "succeeded")
    assert job.result["note"] == "warning: vdb is raw; warning: this host has no network 'lan'"
    assert (sites.source.done, sites.target.done) == (["check_source"], ["check_target"])
    assert sites.target.orders[0].check_target.machine.native == NATIVE
    assert not await sites.audited("vm.protect")
    assert not sites.target.replicas


async def test_a_dry_run_says_what_the_target_refuses(sites: Scene):
    await sites.pair()
    refused = types_pb2.ErrorDetail(code="OBSTACLES", message="VM web01 cannot run on this host: no machine type x")
    sites.target.refuse["check_target"] = refused
    job = await sites.ended(await sites.admin.machines.Protect(request(dry_run=True, ask_hosts=True)))
    assert (job.state, job.error.code) == ("failed", "OBSTACLES")


async def test_a_plan_alone_asks_nobody(sites: Scene):
    await sites.pair()
    assert not (await sites.admin.machines.Protect(request(dry_run=True))).job_id
    assert not sites.source.done


async def test_the_target_is_prepared_with_the_vms_own_words_and_the_job_tells_what_was_found(sites: Scene):
    described(sites)
    job = await sites.protect()
    order = next(one for one in sites.target.orders if one.WhichOneof("action") == "prepare_replica")
    assert order.prepare_replica.machine.native == NATIVE
    assert job.result["note"] == "warning: vdb is raw; warning: this host has no network 'lan'"
