"""Puts the coordinator together and runs it. The only place that builds adapters and wires services."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from coordinator.access import methods
from coordinator.access.forward import ForwardClock
from coordinator.access.judge import DatabaseJudge
from coordinator.access.members import Members
from coordinator.access.rpc import identity_mount, sessions_mount
from coordinator.access.users import Users
from coordinator.audit.refusals import Refusals
from coordinator.audit.rpc import audit_mount
from coordinator.enrollment.rpc import enrollment_mount, keys_mount
from coordinator.enrollment.service import Enrollment
from coordinator.inventory.link import Sessions
from coordinator.inventory.rpc import mounts as inventory_mounts
from coordinator.inventory.servers import Servers
from coordinator.inventory.service import Inventory
from coordinator.inventory.sites import Sites
from coordinator.jobs import Jobs, lease
from coordinator.jobs.rpc import jobs_mount
from coordinator.pki import Authority
from coordinator.protection import pairs
from coordinator.protection import steps as protection
from coordinator.protection.desired import Desired
from coordinator.protection.reports import Reports
from coordinator.protection.rpc import mounts as protection_mounts
from coordinator.protection.seeds import Seeds
from coordinator.protection.service import Protections
from coordinator.recovery import steps as recovery
from coordinator.recovery.marks import Marks
from coordinator.recovery.service import Recoveries
from coordinator.settings import Settings
from coordinator.statistics.service import Statistics
from coordinator.status.rpc import mounts as status_mounts
from coordinator.status.service import StatusService
from coordinator.store.engine import Database
from coordinator.store.migrate import migrate
from coordinator.vault.rpc import VaultsServicer, vaults_mount
from coordinator.vault.service import Vaults, authority_of
from twinsite import files
from twinsite.access import Gate
from twinsite.clock import Clock
from twinsite.server import CONTROL, ENROLLMENT, Mount, Running, serve
from twinsite.tls import server_credentials

log = structlog.get_logger()
_DRAIN_SECONDS: Final = 2.0  # providers' streams do not end by themselves, so a stop always takes as long
_RECONCILE_SECONDS: Final = 60.0


@dataclass(slots=True)
class Addresses:
    """host:port as others reach the two listeners; known once they listen."""

    enrollment: str = ""
    link: str = ""


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Database]:
    files.private_directory(settings.state)
    database = Database(settings.database_url)
    try:
        await database.reach()
        yield database
    finally:
        await database.close()


async def create_user(settings: Settings, clock: Clock, name: str, role: str, password: str) -> Path:
    """Make an account, and the vault's authority if there is none; the file with its root certificate.

    Works beside a serving coordinator. Raises what `Users.create` raises.
    """
    async with _opened(settings) as database:
        await migrate(database)
        authority = await authority_of(database, settings.state / "pki", clock)
        await _users(database, authority, clock, ForwardClock(clock)).create(name, role, password)
    return settings.state / "roots.pem"


async def serve_until(stop: asyncio.Event, settings: Settings, clock: Clock) -> None:
    """Serve until `stop` is set, then drain. Raises PortInUse, DatabaseAway, DatabaseInUse, LeaseLost,
    AuthorityDamaged, AuthorityOfAnotherVault.
    """
    async with _opened(settings) as database, lease.held(database, clock) as held:
        await migrate(database)
        authority = await authority_of(database, settings.state / "pki", clock)
        services = Services(settings, database, authority, clock)
        await services.forward.load(database)
        await services.inventory.start()
        await services.jobs.start()
        try:
            async with asyncio.TaskGroup() as group, services.listening() as addresses:
                duties = [
                    group.create_task(held.watch()),
                    group.create_task(authority.keep_current()),
                    group.create_task(services.reports.run()),
                    group.create_task(services.statistics.run()),
                    group.create_task(_reconcile(services.jobs, clock)),
                ]
                with _ready(settings, addresses, clock):
                    log.info("serving", enrollment=addresses.enrollment, link=addresses.link)
                    await stop.wait()
                    log.info("stopping")
                for duty in duties:
                    duty.cancel()
        finally:
            await services.jobs.stop()


class Services:
    """Every service of a serving coordinator."""

    def __init__(self, settings: Settings, database: Database, authority: Authority, clock: Clock) -> None:
        self._settings, self._authority = settings, authority
        self._addresses = Addresses()
        self.forward = ForwardClock(clock)
        self.jobs = Jobs(database, clock)
        self.vaults = Vaults(database, self.jobs, clock, authority.vault)
        self.users = Users(database, authority, clock, self.forward, self.vaults.name)
        self.members = Members(database, authority, clock, self.forward)
        self.enrollment = Enrollment(
            database, authority, clock, self.forward, self.members, self.vaults.name, self._enrollment_address
        )
        self.inventory = Inventory(database, clock)
        self.servers = Servers(database, clock, self.members, pairs)
        desired = Desired(authority.vault, authority.signer, clock)
        protection.Steps(self.jobs, desired).register()
        recovery.Steps(self.jobs, desired).register()
        self.pairs = pairs.Pairs(database, clock, self.jobs, desired)
        self.protections = Protections(database, clock, self.jobs, desired)
        self.recoveries = Recoveries(database, clock, self.jobs)
        self.seeds = Seeds(database, clock, self.jobs)
        self.seeds.register()
        self.marks = Marks(database, clock, self.jobs)
        self.marks.register()
        self.reports = Reports(database, clock, desired)
        self.statistics = Statistics(database, clock, self.protections)
        self.sessions = Sessions(self.inventory, self.reports, self.jobs, self.statistics, clock, self.vaults.name)
        self.status = StatusService(clock, self.servers, self.protections, self.jobs, self.vaults.name)
        self._database, self._clock = database, clock

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Addresses]:
        """Both listeners serve while the block runs; then calls that run have a few seconds to end."""
        judge = DatabaseJudge(self._database, self._authority.vault, self.forward)
        refusals = Refusals(self._database, self._clock)
        gate = Gate(methods.MEMBERS, judge, self._clock, on_refused=refusals.tell)
        self.users.gates.append(gate)
        self.members.gates.append(gate)
        listeners: list[Running] = []
        try:
            listeners.append(
                await serve(
                    self._settings.listen,
                    self._members_mounts(),
                    credentials=server_credentials(self._authority.watched),
                    gate=gate,
                    limits=CONTROL,
                    reflection=self._settings.reflection,
                )
            )
            self._addresses.link = self._settings.advertise or listeners[0].address
            listeners.append(
                await serve(
                    self._settings.listen_enrollment,
                    [enrollment_mount(self.enrollment, self.users, self._authority, self._link_address)],
                    credentials=server_credentials(self._authority.watched, require_client=False),
                    # Nobody to tell of refusals: who calls here has no identity yet. What is tried with keys and
                    # passwords is audited by those who judge them.
                    gate=Gate(methods.ENROLLMENT, judge, self._clock),
                    limits=ENROLLMENT,
                    reflection=self._settings.reflection,
                )
            )
            self._addresses.enrollment = self._settings.advertise_enrollment or listeners[1].address
            yield Addresses(enrollment=listeners[1].address, link=listeners[0].address)
        finally:
            async with asyncio.TaskGroup() as stopping:
                for listener in listeners:
                    stopping.create_task(listener.stop(_DRAIN_SECONDS))

    def _members_mounts(self) -> Sequence[Mount]:
        return [
            identity_mount(self.members, self._authority),
            sessions_mount(self.users),
            vaults_mount(
                VaultsServicer(
                    self.vaults,
                    root_spki=self._authority.root_spki,
                    enrollment=self._enrollment_address,
                    link=self._link_address,
                )
            ),
            keys_mount(self.enrollment),
            *inventory_mounts(self.sessions, self.servers, Sites(self._database, pairs)),
            *protection_mounts(self.pairs, self.protections, self.recoveries, self.seeds, self.marks, self.statistics),
            *status_mounts(self.status),
            jobs_mount(self.jobs),
            audit_mount(self._database),
        ]

    def _enrollment_address(self) -> str:
        return self._addresses.enrollment

    def _link_address(self) -> str:
        return self._addresses.link


def _users(database: Database, authority: Authority, clock: Clock, forward: ForwardClock) -> Users:
    async def no_name() -> str:
        return ""

    return Users(database, authority, clock, forward, no_name)


async def _reconcile(jobs: Jobs, clock: Clock) -> None:
    while True:
        await clock.sleep(_RECONCILE_SECONDS)
        try:
            await jobs.reconcile()
        except SQLAlchemyError:  # a database that is away for a moment is no reason to stop serving
            log.exception("reconciling jobs failed")


def enrollment_address(settings: Settings) -> str:
    """Where a running coordinator with these settings listens for logins; empty when none runs."""
    try:
        told = json.loads((settings.state / "run" / "ready.json").read_bytes())
        return str(told["addresses"]["enrollment"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def _ready(settings: Settings, addresses: Addresses, clock: Clock) -> Iterator[None]:
    folder = files.private_directory(settings.state / "run")
    content = {
        "pid": os.getpid(),
        "addresses": {"enrollment": addresses.enrollment, "link": addresses.link},
        "started": clock.now(),
    }
    files.replace(folder / "ready.json", json.dumps(content).encode())
    try:
        yield
    finally:
        (folder / "ready.json").unlink(missing_ok=True)
