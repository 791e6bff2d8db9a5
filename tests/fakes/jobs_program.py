"""A coordinator reduced to its jobs, as a process to be killed: `python -m tests.fakes.jobs_program URL PORT`.

It dials the agent at PORT and speaks JSON lines: orders and cancels down, results and the user's wishes up.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from coordinator.jobs import Jobs, TaskContext, TaskPlan, lease
from coordinator.jobs.model import JobIsFinal
from coordinator.store.engine import Database
from twinsite.api.types.v1 import commands_pb2
from twinsite.clock import SystemClock

SERVERS = ("s-1", "s-2")


def plans(kind: str, decision: str) -> list[TaskPlan]:
    def order(what: str, stage: int, server: str = "s-1", *, always: bool = False) -> TaskPlan:
        args = {"what": what, "server": server}
        return TaskPlan(name=what, kind="order", args=args, stage=stage, always=always)

    wait = TaskPlan(name="wait", kind="decide", args={"path": decision}, stage=2)
    clean = order("clean", 9, always=True)
    return {
        "plan": [order("left", 1), order("right", 1, "s-2"), wait, order("last", 3), clean],
        "failing": [order("good", 1), order("fails", 2), order("never", 3), clean],
        "cancelled": [order("endless", 1, "s-2"), order("never", 2), clean],
    }[kind]


async def order(context: TaskContext) -> None:
    command = commands_pb2.HostCommand(check_source=commands_pb2.CheckSource(vm_id=str(context.args["what"])))
    await context.command(str(context.args["server"]), command)


async def decide(context: TaskContext) -> None:
    decision = Path(str(context.args["path"]))

    async def check() -> bool | None:
        return decision.exists() or None

    await context.until(check, timeout=None)


class Link:
    def __init__(self, jobs: Jobs, database: Database, port: int) -> None:
        self._jobs, self._database, self._port = jobs, database, port
        self._out: asyncio.Queue[dict[str, str]] = asyncio.Queue()

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(writer))
            for server in SERVERS:
                group.create_task(self._orders(server))
            async for line in reader:
                await self._take(json.loads(line))

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(json.dumps(await self._out.get()).encode() + b"\n")
            await writer.drain()

    async def _orders(self, server: str) -> None:
        sent: set[tuple[str, str]] = set()
        async for _ in self._jobs.command_wakes(server):
            for each in await self._jobs.commands_for(server):
                kind = "cancel" if isinstance(each, commands_pb2.CancelCommand) else "order"
                if (kind, each.id) not in sent:
                    sent.add((kind, each.id))
                    await self._out.put({"kind": kind, "server": server, "message": each.SerializeToString().hex()})

    async def _take(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "received":
                await self._jobs.command_received(message["server"], message["id"])
            case "progress":
                await self._jobs.command_progress(
                    message["server"], commands_pb2.CommandProgress(id=message["id"], percent=50)
                )
            case "result":
                result = commands_pb2.CommandResult.FromString(bytes.fromhex(message["message"]))
                await self._jobs.command_result(message["server"], result)
            case "submit":
                async with self._database.write() as connection:
                    job = await self._jobs.submit(
                        connection,
                        kind=message["name"],
                        target="vm/web01",
                        tasks=plans(message["name"], message["decision"]),
                        created_by="ana",
                        request_id=message["request_id"],
                    )
                await self._out.put({"kind": "submitted", "name": message["name"], "job": job})
            case "cancel":
                with contextlib.suppress(JobIsFinal):
                    await self._jobs.cancel(message["job"], "ana")
                await self._out.put({"kind": "cancelling", "job": message["job"]})


async def main(url: str, port: int) -> None:
    database = Database(url)
    async with lease.held(database, SystemClock()):
        jobs = Jobs(database, SystemClock())
        jobs.handler("order", order)
        jobs.handler("decide", decide)
        await jobs.start()
        await Link(jobs, database, port).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
