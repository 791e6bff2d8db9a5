"""A site as the coordinator meets it: a provider over a real link, hosts that do what they are told, a ledger."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from tests.fakes.identity_plane import IdentityPlane, Member
from twinsite.api.coordinator.v1 import link_pb2, link_pb2_grpc
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.errors import TwinsiteError

GIB = 2**30
Answer = commands_pb2.CommandResult | None


def machine(name: str, *sizes: int) -> types_pb2.Machine:
    disks = [
        types_pb2.Disk(id=str(uuid.uuid4()), name=f"vd{'abcdefgh'[number]}", size_bytes=size)
        for number, size in enumerate(sizes or (GIB, 2 * GIB))
    ]
    return types_pb2.Machine(
        id=str(uuid.uuid4()), name=name, cpus=2, memory_bytes=GIB, disks=disks, power=types_pb2.POWER_STATE_RUNNING
    )


@dataclass
class FakeHost:
    """`refuse` maps an action's name to the error it ends with; an action in `stuck` is never answered."""

    id: str
    name: str
    address: str
    machines: list[types_pb2.Machine] = field(default_factory=list)
    connected: bool = True
    free: int = 100 * GIB
    replicas: dict[str, types_pb2.Machine] = field(default_factory=dict)
    tests: set[str] = field(default_factory=set)
    points: dict[str, list[types_pb2.Point]] = field(default_factory=dict)
    refuse: dict[str, types_pb2.ErrorDetail] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    findings: str = ""  # what it notes about a VM that it is asked about
    native: types_pb2.NativeDescription | None = None  # of its VMs, told to whoever checks them
    done: list[str] = field(default_factory=list)  # actions, in order; each once per id
    orders: list[commands_pb2.HostCommand] = field(default_factory=list)  # the same, whole
    verified: commands_pb2.Verified = field(default_factory=commands_pb2.Verified)

    def status(self) -> types_pb2.HostStatus:
        return types_pb2.HostStatus(
            host_id=self.id,
            name=self.name,
            agent_version="0.1.0",
            hypervisor="embedded",
            replication_address=self.address,
            store_free_bytes=self.free,
            store_total_bytes=200 * GIB,
            machines=self.machines,
        )

    def instant(self, vm_id: str, cycle: int) -> Timestamp:
        return next((point.instant for point in self.points[vm_id] if point.cycle == cycle), Timestamp())

    def execute(self, command: commands_pb2.HostCommand) -> Answer:
        action = command.WhichOneof("action") or ""
        self.done.append(action)
        self.orders.append(command)
        if action in self.stuck:
            return None
        if action in self.refuse:
            return commands_pb2.CommandResult(id=command.id, ok=False, error=self.refuse[action])
        result = commands_pb2.CommandResult(id=command.id, ok=True)
        match action:
            case "check_source":
                result.machine.CopyFrom(next(one for one in self.machines if one.id == command.check_source.vm_id))
                if self.native is not None:
                    result.machine.native.CopyFrom(self.native)
                result.note = self.findings
            case "check_target":
                result.note = self.findings
            case "prepare_replica":
                result.note = self.findings
                self.replicas[command.prepare_replica.machine.id] = command.prepare_replica.machine
            case "test_failover":
                order = command.test_failover
                self.tests.add(order.test_id)
                result.cycle = order.cycle or self.points[order.vm_id][-1].cycle
                result.instant.CopyFrom(self.instant(order.vm_id, result.cycle))
                result.machine.name = f"{self.replicas[order.vm_id].name} - Test"
                result.note = "/disks/of/the/test"
            case "test_cleanup":
                self.tests.discard(command.test_cleanup.test_id)
            case "failover":
                order = command.failover
                result.cycle = order.cycle or self.points[order.vm_id][-1].cycle
                result.instant.CopyFrom(self.instant(order.vm_id, result.cycle))
                result.machine.CopyFrom(self.replicas[order.vm_id])
            case "mark_point":
                result.point.CopyFrom(self._mark(command.mark_point))
            case "verify_replica":
                result.verified.CopyFrom(self.verified)
            case "seed_export" | "seed_import":
                result.seed_id = "seed-1"
                result.note = "3 parts"
            case "check_seed_export" | "check_seed_import":
                result.note = "the path will do"
            case "remove_replica":
                self.replicas.pop(command.remove_replica.vm_id, None)
        return result

    def _mark(self, order: commands_pb2.MarkPoint) -> types_pb2.Point:
        point = next(one for one in self.points[order.vm_id] if one.cycle == order.cycle)
        if order.HasField("keep"):
            point.kept = order.keep
        if order.HasField("name"):
            point.name = order.name
        if order.HasField("lock_seconds"):
            point.locked_until.FromSeconds(int(time.time()) + order.lock_seconds)
        return point


@dataclass
class FakeSite:
    """One provider. Its ledger and its hosts survive `connected` blocks, as they survive restarts."""

    plane: IdentityPlane
    member: Member
    clouds: list[link_pb2.Cloud] = field(default_factory=list)
    hosts: dict[str, FakeHost] = field(default_factory=dict)
    ledger: dict[str, Answer] = field(default_factory=dict)  # id → result; None while it runs
    stored: set[str] = field(default_factory=set)
    points_asked: list[str] = field(default_factory=list)  # VM id
    samples_stored: list[tuple[str, int]] = field(default_factory=list)  # host id, batch id
    cancelled: list[str] = field(default_factory=list)
    assignments: dict[str, types_pb2.Assignments] = field(default_factory=dict)
    versions: list[tuple[str, int]] = field(default_factory=list)  # as they arrived
    welcome: link_pb2.Welcome = field(default_factory=link_pb2.Welcome)
    ended: TwinsiteError | None = None  # why the last session ended, if not by us
    version: int = 0
    _outbox: asyncio.Queue[link_pb2.FromProvider] = field(default_factory=asyncio.Queue)

    @property
    def id(self) -> str:
        return self.member.id

    async def host(self, name: str, cloud: str, *machines: types_pb2.Machine, free: int = 100 * GIB) -> FakeHost:
        """A registered host in a cloud of this site."""
        credentials = await self.plane.host(self.member, name)
        made = FakeHost(credentials.identity.id, name, f"127.0.0.1:{8100 + len(self.hosts)}", list(machines), free=free)
        self.hosts[made.id] = made
        found = next((one for one in self.clouds if one.name == cloud), None)
        if found is None:
            found = link_pb2.Cloud(name=cloud)
            self.clouds.append(found)
        if not found.host_groups:
            found.host_groups.add(name="all")
        found.host_groups[0].hosts.append(name)
        return made

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator["FakeSite"]:
        """Hello, inventory and points up; returns once the coordinator has welcomed us."""
        self._outbox = asyncio.Queue()
        self.ended = None
        self.welcome.Clear()
        held = {host: assignments.version for host, assignments in self.assignments.items()}
        hello = link_pb2.Hello(agent_version="0.1.0", assignment_versions=held)
        self.send(link_pb2.FromProvider(hello=hello))
        self.report()
        for host in self.hosts.values():
            for vm_id in host.points:
                self.send_points(host, vm_id)
        for result in self.ledger.values():
            if result is not None and result.id not in self.stored:
                self.send(link_pb2.FromProvider(result=result))
        async with self.plane.dial(self.member) as channel, asyncio.TaskGroup() as group:
            session = group.create_task(self._session(link_pb2_grpc.LinkStub(channel)))
            await until(lambda: self.welcome.coordinator_unix or session.done())
            try:
                yield self
            finally:
                session.cancel()

    async def _session(self, stub: "link_pb2_grpc.LinkAsyncStub") -> None:
        async def up() -> AsyncIterator[link_pb2.FromProvider]:
            while True:
                yield await self._outbox.get()

        try:
            async for message in stub.Connect(up()):
                self._take(message)
        except TwinsiteError as error:
            self.ended = error

    def _take(self, message: link_pb2.ToProvider) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                self.welcome.CopyFrom(message.welcome)
            case "assignments":
                self.assignments[message.assignments.host_id] = message.assignments
                self.versions.append((message.assignments.host_id, message.assignments.version))
            case "result_stored":
                self.stored.add(message.result_stored.id)
            case "points_asked":
                self.points_asked.append(message.points_asked.vm_id)
                host = next(one for one in self.hosts.values() if one.id == message.points_asked.host_id)
                self.send_points(host, message.points_asked.vm_id)
            case "samples_stored":
                self.samples_stored.append((message.samples_stored.host_id, message.samples_stored.id))
            case "cancel":
                self.cancelled.append(message.cancel.id)
                if self.ledger.get(message.cancel.id) is None:
                    error = types_pb2.ErrorDetail(code="CANCELLED", message="rolled back")
                    self._result(commands_pb2.CommandResult(id=message.cancel.id, ok=False, error=error))
            case "command":
                self._command(message.command)

    def _command(self, command: commands_pb2.HostCommand) -> None:
        """At most once per id; a repeat is answered from the ledger."""
        self.send(link_pb2.FromProvider(received=link_pb2.CommandReceived(id=command.id)))
        if command.id not in self.ledger:
            self.ledger[command.id] = None
            host = self.hosts[command.host_id]
            if not host.connected:
                return
            self.ledger[command.id] = host.execute(command)
        result = self.ledger[command.id]
        if result is not None:
            self._result(result)

    def _result(self, result: commands_pb2.CommandResult) -> None:
        self.ledger[result.id] = result
        self.send(link_pb2.FromProvider(result=result))

    # ---- what the test makes it say -----------------------------------------------------------------------------

    def send(self, message: link_pb2.FromProvider) -> None:
        self._outbox.put_nowait(message)

    def report(self) -> None:
        """The whole inventory."""
        self.version += 1
        presences = [
            link_pb2.HostPresence(status=host.status(), connected=host.connected) for host in self.hosts.values()
        ]
        inventory = link_pb2.Inventory(
            version=self.version,
            clouds=self.clouds,
            networks=[link_pb2.Network(name="prod", logical_network="lan", subnets=["10.0.0.0/24"])],
            storage_classifications=[link_pb2.StorageClassification(name="fast")],
            hosts=presences,
        )
        self.send(link_pb2.FromProvider(inventory=inventory))

    def send_points(self, host: FakeHost, vm_id: str) -> None:
        points = link_pb2.Points(host_id=host.id, vm_id=vm_id, points=host.points[vm_id])
        self.send(link_pb2.FromProvider(points=points))

    def send_changes(self, host: FakeHost, vm_id: str, *fresh: types_pb2.Point, gone: Sequence[int] = ()) -> None:
        """What the host's points were before does not matter to it."""
        points = link_pb2.Points(
            host_id=host.id, vm_id=vm_id, points=fresh, changes=True, gone=gone, total=len(host.points[vm_id])
        )
        self.send(link_pb2.FromProvider(points=points))

    def commit(self, host: FakeHost, vm_id: str, instant: float, *, consistency: str = "crash") -> int:
        """A new cycle at the target; its number."""
        known = host.points.setdefault(vm_id, [])
        cycle = known[-1].cycle + 1 if known else 1
        known.append(
            types_pb2.Point(
                vm_id=vm_id, cycle=cycle, instant=stamp(instant), consistency=consistency, term=1, changed_bytes=4096
            )
        )
        self.send_points(host, vm_id)
        if consistency != "none":
            self.state(vm_id, "target", committed_cycle=cycle, committed_instant=stamp(instant))
        return cycle

    def state(self, vm_id: str, role: str, state: str = "replicating", **fields: object) -> None:
        """A replication status of one VM."""
        status = types_pb2.ReplicationStatus(
            vm_id=vm_id,
            role=types_pb2.ROLE_SOURCE if role == "source" else types_pb2.ROLE_TARGET,
            state=types_pb2.ReplicationState.Value(f"REPLICATION_STATE_{state.upper()}"),
            **fields,  # type: ignore[arg-type]  # the test's own
        )
        self.send(link_pb2.FromProvider(statistics=link_pb2.Statistics(statuses=[status])))

    def samples(self, host: FakeHost, batch_id: int, *samples: types_pb2.Sample) -> None:
        """A batch of what the host measured."""
        batch = link_pb2.HostSamples(host_id=host.id, id=batch_id, samples=samples)
        self.send(link_pb2.FromProvider(samples=batch))

    def assigned(self, host: FakeHost, vm_id: str) -> types_pb2.Assignment | None:
        assignments = self.assignments.get(host.id, types_pb2.Assignments()).assignments
        return next((one for one in assignments if one.vm_id == vm_id), None)


def stamp(seconds: float) -> Timestamp:
    whole = int(seconds)
    return Timestamp(seconds=whole, nanos=int((seconds - whole) * 1e9))


async def until(check: Callable[[], object], *, seconds: float = 15.0) -> object:
    """The first true value of a check, sync or async, asked until a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
