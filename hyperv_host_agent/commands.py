"""Orders from the provider: executed at most once per id, journalled before and after, answered again when repeated.

A command that was received and has no result after a restart is executed again; every handler is written so that this
leads to the same end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from hyperv_host_agent.outbox import Outbox
from twinsite import status
from twinsite.api.types.v1.commands_pb2 import CommandProgress, CommandResult, HostCommand
from twinsite.errors import Aborted, Internal, InvalidInput, TwinsiteError
from twinsite.journal import Done, Journal, New

_log = structlog.get_logger()


class UnknownAction(InvalidInput):
    public = "this host agent does not know the command"
    still_works = "nothing was changed"
    next_step = "update the host agent"


class CommandCancelled(Aborted):
    public = "the command was cancelled"
    still_works = "what it had begun was taken back"


class Call:
    """One command that runs. A handler answers into `result`, and says with `settled` that it is past taking back."""

    def __init__(self, command: HostCommand, say: Callable[[CommandProgress], None]) -> None:
        self.command = command
        self.result = CommandResult(id=command.id)
        self.cancelled = False
        self.settled = False
        self._say = say

    def progress(self, percent: int, message: str) -> None:
        self._say(CommandProgress(id=self.command.id, percent=percent, message=message))

    def progress_bytes(self, done: int, total: int, message: str) -> None:
        percent = 100 * done // total if total else 100
        self._say(
            CommandProgress(id=self.command.id, percent=percent, bytes_done=done, bytes_total=total, message=message)
        )


# Hours perhaps: a failover or the end of the protection does not wait for them.
_BESIDE: Final = frozenset({"seed_export", "seed_import", "check_seed_export", "check_seed_import", "verify_replica"})
Handler = Callable[[Call], Awaitable[None]]


class Commands:
    """`group` owns the tasks. `handlers` by the name of the action's field in HostCommand."""

    def __init__(
        self,
        journal: Journal,
        outbox: Outbox,
        handlers: Mapping[str, Handler],
        after: Callable[[], Awaitable[None]],
        group: asyncio.TaskGroup,
    ) -> None:
        """`after` runs when a command has its result, before it is told: it may have changed what this host has."""
        self._journal = journal
        self._after = after
        self._outbox = outbox
        self._handlers: Final = dict(handlers)
        self._group = group
        self._running: dict[str, tuple[Call, asyncio.Task[None]]] = {}
        self._turns: dict[str, asyncio.Lock] = {}  # commands for one VM do not overlap

    async def resume(self) -> None:
        """After a restart: go on with what has no result."""
        for unfinished in await asyncio.to_thread(self._journal.unfinished):
            command = HostCommand.FromString(unfinished.payload)
            _log.info("command_resumed", id=command.id, action=command.WhichOneof("action"))
            self._start(command)

    async def submit(self, command: HostCommand) -> None:
        """Raises JournalUnwritable, CommandTooLarge; then nothing was executed."""
        payload = command.SerializeToString(deterministic=True)
        match await asyncio.to_thread(self._journal.received, command.id, payload):
            case New():
                self._outbox.received(command.id)
                _log.info("command_received", id=command.id, action=command.WhichOneof("action"))
                self._start(command)
            case Done(result):
                self._outbox.result(CommandResult.FromString(result))
            case _:
                self._outbox.received(command.id)

    def cancel(self, command_id: str) -> None:
        """Its result is sent all the same; a command that is past taking back goes on."""
        call, task = self._running.get(command_id, (None, None))
        if call is not None and task is not None and not call.settled and not call.cancelled:
            call.cancelled = True
            task.cancel()

    async def stored(self, command_id: str) -> None:
        await asyncio.to_thread(self._journal.stored, command_id)

    def stop(self) -> None:
        """The agent ends; what runs is executed again after its restart."""
        for _, task in self._running.values():
            task.cancel()

    def unstored(self) -> list[CommandResult]:
        """Results the provider has not said to have; blocking."""
        return [CommandResult.FromString(held.payload) for held in self._journal.unstored()]

    def _start(self, command: HostCommand) -> None:
        call = Call(command, self._outbox.progress)
        self._running[command.id] = call, self._group.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        error: TwinsiteError | None = None
        try:
            await self._handle(call)
        except TwinsiteError as raised:
            error = raised
        except asyncio.CancelledError:
            if not call.cancelled:
                raise  # the agent ends; the command is executed again after its restart
            error = CommandCancelled()
        except Exception:  # noqa: BLE001  # the top of a task
            _log.exception("command_broke", id=call.command.id)
            error = Internal()
        if error is not None:
            call.result.error.CopyFrom(status.to_proto(error))
        call.result.ok = error is None
        await self._finish(call)

    async def _handle(self, call: Call) -> None:
        action = call.command.WhichOneof("action")
        if action is None or action not in self._handlers:
            raise UnknownAction
        order = getattr(call.command, action)
        turn = order.machine.id if action in {"prepare_replica", "check_target"} else order.vm_id
        if action in _BESIDE:
            turn = f"{turn} {action}"
        async with self._turns.setdefault(turn, asyncio.Lock()):
            await self._handlers[action](call)

    async def _finish(self, call: Call) -> None:
        command_id = call.command.id
        try:
            payload = call.result.SerializeToString(deterministic=True)
            await asyncio.to_thread(self._journal.finished, command_id, payload)
        except TwinsiteError as error:
            # Without a durable result there is no answer; the provider asks again, and the command is repeatable.
            _log.error("result_not_stored", id=command_id, reason=str(error))
            return
        finally:
            self._running.pop(command_id, None)
        await self._after()
        _log.info("command_done", id=command_id, ok=call.result.ok, code=call.result.error.code)
        self._outbox.result(call.result)
