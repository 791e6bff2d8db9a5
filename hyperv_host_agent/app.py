"""Puts the host agent together and runs it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent import rpc, runfile
from hyperv_host_agent.assignments import Assignments, ByVm
from hyperv_host_agent.commands import Commands, Handler
from hyperv_host_agent.greeting import Greeting
from hyperv_host_agent.hypervisors.base import Hypervisor
from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.libvirt.opening import open_libvirt
from hyperv_host_agent.inventory import Inventory
from hyperv_host_agent.link import Link
from hyperv_host_agent.membership import Membership, join
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.points import Points
from hyperv_host_agent.preparation import Preparation
from hyperv_host_agent.promotions import Promotions
from hyperv_host_agent.recovery import Recovery
from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.sample_store import SampleStore
from hyperv_host_agent.sampling import Sampling
from hyperv_host_agent.scrubbing import Scrubbing
from hyperv_host_agent.seeds.beginnings import Beginnings
from hyperv_host_agent.seeds.exports import Exports
from hyperv_host_agent.seeds.imports import Imports
from hyperv_host_agent.seeds.old_keys import OldKeys
from hyperv_host_agent.seeds.paths import Media, PathRules
from hyperv_host_agent.settings import Settings
from hyperv_host_agent.sources import Sources
from hyperv_host_agent.store.base import ReplicaStore
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.targets import Targets
from twinsite import files
from twinsite.access import Gate, VaultMembers
from twinsite.clock import Clock
from twinsite.credentials import Credentials, NoCredentials
from twinsite.journal import Journal
from twinsite.server import DATA, Running, serve
from twinsite.tls import server_credentials

_log = structlog.get_logger()
_DRAIN_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Agent:
    """What a serving agent shows of itself."""

    address: str  # host:port of the replication server, with the real port
    host_id: str
    assignments: Assignments
    commands: Commands
    sources: Sources
    targets: Targets
    outbox: Outbox


def hypervisor_of(settings: Settings) -> Hypervisor:
    """The backend the settings name; to be closed. Raises LibvirtMissing."""
    if settings.hypervisor.kind == "libvirt":
        return open_libvirt(
            settings.hypervisor.uri,
            settings.vms,
            settings.state / "hypervisor",
            settings.hypervisor.scratch,
            networks={network.from_: network.to for network in settings.hypervisor.networks},
            test_network=settings.hypervisor.test_network,
        )
    return EmbeddedHypervisor(settings.vms, settings.state / "run" / "guests")


@contextlib.asynccontextmanager
async def agent(
    settings: Settings,
    clock: Clock,
    *,
    hypervisor: Hypervisor | None = None,
    store: ReplicaStore | None = None,
    media: Media | None = None,
) -> AsyncIterator[Agent]:
    """The host agent serves while the block runs; on the first start it joins before that.

    The hypervisor is closed with it.

    Raises BadJoinFile, LibvirtMissing, PortInUse, JournalInUse, JournalDamaged, CredentialsDamaged.
    """
    state = files.private_directory(settings.state)
    journal = Journal.open(state / "commands.journal", clock)
    try:
        try:
            credentials = Credentials.load(runfile.identity_folder(state))
        except NoCredentials:
            credentials = await join(runfile.identity_folder(state), settings.join_file, clock)
        membership = Membership(runfile.identity_folder(state), credentials, clock)
        with contextlib.closing(hypervisor or hypervisor_of(settings)) as opened:
            async with _serving(
                settings,
                clock,
                membership,
                journal,
                opened,
                store or ChainStore(settings.store, reserve=settings.store_reserve_bytes),
                media or Media(),
            ) as serving:
                yield serving
    finally:
        journal.close()


@contextlib.asynccontextmanager
async def _serving(
    settings: Settings,
    clock: Clock,
    membership: Membership,
    journal: Journal,
    hypervisor: Hypervisor,
    store: ReplicaStore,
    media: Media,
) -> AsyncIterator[Agent]:
    state = settings.state
    outbox, replicas, promotions = Outbox(), Replicas(store), Promotions(state / "promotions")
    sampling = Sampling(SampleStore(state / "statistics.db"), clock)
    targets = Targets(
        replicas,
        promotions,
        hypervisor=hypervisor,
        outbox=outbox,
        clock=clock,
        maintain_rate=settings.maintain_bytes_per_second,
    )
    listener: Running | None = None
    sources: Sources | None = None
    try:
        listener = await _listen(settings, clock, membership, targets)
        address = settings.advertise or listener.address
        async with asyncio.TaskGroup() as group:
            sources = Sources(
                state / "sources",
                hypervisor=hypervisor,
                membership=membership,
                outbox=outbox,
                sampling=sampling,
                settings=settings.transfer,
                clock=clock,
                group=group,
            )
            scrubbing = Scrubbing(
                replicas,
                targets,
                clock,
                bytes_per_second=settings.scrub_bytes_per_second,
                days=settings.scrub_days,
            )
            recovery = Recovery(
                membership.identity,
                hypervisor=hypervisor,
                replicas=replicas,
                receptions=targets.receptions,
                targets=targets,
                promotions=promotions,
                signing_keys=lambda: membership.signing_keys,
                greeting=Greeting(hypervisor, settings.hypervisor, clock),
                clock=clock,
            )
            beginnings = Beginnings(settings.store, clock)
            beginnings.tidy()
            preparation = Preparation(
                hypervisor=hypervisor,
                replicas=replicas,
                sources=sources,
                targets=targets,
                promotions=promotions,
                beginnings=beginnings,
            )
            old_keys = OldKeys(state / "seed-keys", replicas)
            membership.before_renewal(old_keys.replaced)
            rules = PathRules((settings.vms, settings.store, state), media.surroundings)
            exports = Exports(sources, membership, rules, clock, media.part_bytes)
            imports = Imports(replicas, targets, membership, old_keys, rules)
            inventory = Inventory(membership, hypervisor, store, outbox, clock, address=lambda: address)
            commands = Commands(
                journal,
                outbox,
                _handlers(recovery, preparation, Points(replicas, targets), exports, imports),
                inventory.look,
                group,
            )
            assignments = _assignments(state, sources, targets, outbox)
            link = Link(
                membership, clock=clock, outbox=outbox, commands=commands, assignments=assignments, sampling=sampling
            )
            await sampling.load()
            await assignments.load()
            await commands.resume()
            tasks = [
                group.create_task(work)
                for work in (
                    targets.promoted(),
                    targets.run(),
                    scrubbing.run(),
                    inventory.run(),
                    sources.power_on(assignments),
                    sources.take_turns(),
                    sampling.run(),
                    membership.keep(),
                    link.run(),
                )
            ]
            runfile.write(state, listener.address, clock.now())
            _log.info("host_agent_serves", host=membership.identity.id, replication=listener.address)
            yield Agent(listener.address, membership.identity.id, assignments, commands, sources, targets, outbox)
            for task in tasks:
                task.cancel()
            commands.stop()
            await sources.close()
    finally:
        runfile.remove(state)
        if sources is not None:
            await sources.close()
        if listener is not None:
            await listener.stop(_DRAIN_SECONDS)
        await replicas.close()
        _log.info("host_agent_ended")


async def _listen(settings: Settings, clock: Clock, membership: Membership, targets: Targets) -> Running:
    replication = rpc.Replication(
        membership.identity,
        targets.receptions,
        clock,
        lambda: membership.signing_keys,
        silent_seconds=settings.transfer.silent_seconds,
    )
    return await serve(
        settings.listen,
        [replication.mount()],
        credentials=server_credentials(membership.watched),
        gate=Gate(rpc.TABLE, VaultMembers(membership.identity.vault), clock),
        limits=DATA,
    )


def _assignments(state: Path, sources: Sources, targets: Targets, outbox: Outbox) -> Assignments:
    async def apply(assigned: ByVm) -> None:
        await targets.apply(assigned)
        await sources.apply(assigned)

    return Assignments(state, apply=apply, on_held=outbox.held)


def _handlers(
    recovery: Recovery, preparation: Preparation, points: Points, exports: Exports, imports: Imports
) -> dict[str, Handler]:
    return {
        "check_source": preparation.check_source,
        "check_target": preparation.check_target,
        "prepare_replica": preparation.prepare_replica,
        "remove_replica": preparation.remove_replica,
        "forget_source": preparation.forget_source,
        "test_failover": recovery.test_failover,
        "test_cleanup": recovery.test_cleanup,
        "failover": recovery.failover,
        "stop_machine": recovery.stop_machine,
        "seed_export": exports.seed_export,
        "seed_import": imports.seed_import,
        "check_seed_export": exports.check_seed_export,
        "check_seed_import": imports.check_seed_import,
        "mark_point": points.mark_point,
        "verify_replica": points.verify_replica,
    }
