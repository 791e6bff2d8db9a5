"""Media on their way: the disks read while the guest writes, carried over, and read in at the target."""

from collections.abc import Callable

from hyperv_host_agent.replication.cycle import Batch, Wanted
from hyperv_host_agent.store.base import AwaitedSeed, NoSpace, SeedNotAwaited, SeedStopped
from tests.simulation import content
from tests.simulation.source import Source
from tests.simulation.target import Target
from tests.simulation.world import World
from twinsite.extents import Run, cluster_length, clusters

PORTIONS = 4


class Courier:
    """Exports and imports for as long as the target awaits a seed. `arrived` is called when one is in place."""

    def __init__(self, world: World, source: Source, target: Target, arrived: Callable[[], None]) -> None:
        self.world, self.source, self.target, self.arrived = world, source, target, arrived
        self.hurried = False
        self.after_of = lambda opened: opened

    def set_out(self) -> None:
        """Look again and again; one seed at a time."""
        world, target = self.world, self.target
        awaited = target.replica.awaited() if target.up else None
        if awaited and self.source.asked and self.source.guest.running:
            Media(self, awaited).export()
        else:
            self.later(world.between(10, 90), self.set_out)

    def later(self, delay: float, act: Callable[[], None]) -> None:
        """After a while; soon, once there is a hurry."""

        def wait(left: float) -> None:
            if left <= 0 or self.hurried:
                self.world.after(self.world.between(0.0, 1.0), act)
            else:
                self.world.after(min(left, 3.0), lambda: wait(left - 3.0))

        wait(delay)


class Media:
    def __init__(self, courier: Courier, awaited: AwaitedSeed) -> None:
        self.courier, self.awaited = courier, awaited
        self.world = courier.world
        self.content: list[dict[int, content.Token]] = [{} for _ in awaited.disks]
        self.after = 0
        self.lacking: tuple[Wanted, ...] = ()

    def export(self, portion: int = 0) -> None:
        """Portion by portion, while the guest writes."""
        guest = self.courier.source.guest
        for held, disk in zip(self.content, self.awaited.disks, strict=True):
            now = guest.content.get(disk.id, {})
            for cluster in range(portion, clusters(disk.size), PORTIONS):
                token = content.cut(now.get(cluster, content.ZERO), cluster_length(cluster, disk.size))
                if token != content.ZERO:
                    held[cluster] = token
        if portion + 1 < PORTIONS:
            self.courier.later(self.world.between(0.0, 6.0), lambda: self.export(portion + 1))
        else:
            self.finish()

    def finish(self) -> None:
        source = self.courier.source
        if not source.up or not source.asked:
            self.world.after(1.0, self.finish)  # its agent says which cycles may be older
            return
        self.after = self.courier.after_of(source.opened)
        if self.world.chance(0.4):
            self.spoil()
        self.courier.later(self.world.between(1, 60), self.begin)

    def spoil(self) -> None:
        """Parts of the media cannot be read."""
        rng = self.world.rng
        lacking = []
        for held, disk in zip(self.content, self.awaited.disks, strict=True):
            start = rng.randrange(clusters(disk.size))
            run = Run(start, rng.randint(1, clusters(disk.size) - start))
            lacking.append(Wanted(disk.id, run))
            for cluster in range(run.start, run.end):
                held.pop(cluster, None)
        self.lacking = tuple(lacking)

    def begin(self) -> None:
        self.at_target(lambda: self.courier.target.replica.seed_begin(self.awaited.id), self.put)

    def put(self, disk: int = 0) -> None:
        held = sorted(self.content[disk].items())

        def stage() -> None:
            if held:
                frames = [content.frame(token) for _, token in held]
                self.courier.target.replica.seed_put(
                    Batch(
                        sequence=disk + 1,
                        disk=disk,
                        clusters=[cluster for cluster, _ in held],
                        lengths=[len(frame) for frame in frames],
                        fingerprints=b"".join(content.fingerprint(token) for _, token in held),
                        zero_runs=(),
                        payload=b"".join(frames),
                    )
                )

        self.at_target(stage, (lambda: self.put(disk + 1)) if disk + 1 < len(self.content) else self.commit)

    def commit(self) -> None:
        def publish() -> None:
            self.courier.target.replica.seed_commit(after_cycle=self.after, lacking=self.lacking)
            self.courier.arrived()

        self.at_target(publish, self.courier.set_out)

    def at_target(self, act: Callable[[], None], then: Callable[[], None]) -> None:
        target = self.courier.target
        if not target.up:
            self.world.after(2.0, self.begin)
            return
        try:
            act()
        except (SeedStopped, NoSpace, RuntimeError):  # it died in between, or is full: from the start of the media
            self.world.after(2.0, self.begin)
        except SeedNotAwaited:
            self.courier.set_out()
        else:
            self.courier.later(self.world.between(0.0, 3.0), then)
