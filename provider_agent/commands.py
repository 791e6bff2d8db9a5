"""Commands for hosts on their way down, receipts, progress and results on their way up.

A command is in the journal before the coordinator is told that it was received and before any host sees it. Handing it
to the host is repeatable, since the host has a journal too; so after a crash every open command is simply handed over
again. A result is in the journal before the host may forget it.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from provider_agent.hosts import Hosts
from provider_agent.mail import Mail
from provider_agent.outbox import Outbox
from twinsite import status
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2
from twinsite.errors import Aborted, NotFound, TwinsiteError
from twinsite.journal import Done, Journal

_log = structlog.get_logger()


class HostNotHere(NotFound):
    public = "host {error.host_id} does not belong to this provider"
    still_works = "nothing was executed"
    next_step = "look at `twinsite host list`; the host may have been joined anew"

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id


class CancelledBeforeStart(Aborted):
    public = "the command was cancelled before the host saw it"
    still_works = "nothing was executed"


@dataclass(slots=True)
class _Open:
    command: commands_pb2.HostCommand
    offered: bool  # the host may have seen it
    cancelled: bool = False


class Commands:
    def __init__(self, journal: Journal, hosts: Hosts, outbox: Outbox, mail: Mail) -> None:
        self._journal, self._hosts, self._outbox, self._mail = journal, hosts, outbox, mail
        self._open: dict[str, _Open] = {}
        for found in journal.unfinished():
            command = commands_pb2.HostCommand.FromString(found.payload)
            self._open[found.id] = _Open(command, offered=bool(command.host_id))

    async def submit(self, command: commands_pb2.HostCommand) -> None:
        """From the coordinator, maybe again. Raises CommandTooLarge, JournalUnwritable: then it was not received."""
        known = await asyncio.to_thread(self._journal.received, command.id, command.SerializeToString())
        self._outbox.received(command.id)
        if isinstance(known, Done):
            self._outbox.result(commands_pb2.CommandResult.FromString(known.result))
            return
        if command.id not in self._open:
            self._open[command.id] = _Open(command, offered=False)
        if self._hosts.get(command.host_id) is None:
            await self._fail(command.id, HostNotHere(command.host_id))
        else:
            self._offer(self._open[command.id])

    async def cancel(self, command_id: str) -> None:
        """From the coordinator, maybe instead of the command. Every cancel is answered: the host decides how far to go
        back and sends its result; what it never saw ends here, and a later copy of the command is not executed.
        """
        found = self._open.get(command_id)
        if found is None:
            nobody = commands_pb2.HostCommand(id=command_id)
            known = await asyncio.to_thread(self._journal.received, command_id, nobody.SerializeToString())
            if isinstance(known, Done):
                self._outbox.result(commands_pb2.CommandResult.FromString(known.result))
                return
            found = self._open[command_id] = _Open(nobody, offered=False)
        found.cancelled = True
        if found.offered:
            self._mail.send(found.command.host_id, pb.ToHost(cancel=commands_pb2.CancelCommand(id=command_id)))
        else:
            await self._fail(command_id, CancelledBeforeStart())

    async def stored(self, command_id: str) -> None:
        """The coordinator has the result."""
        await asyncio.to_thread(self._journal.stored, command_id)

    async def unstored(self) -> list[commands_pb2.CommandResult]:
        found = await asyncio.to_thread(self._journal.unstored)
        return [commands_pb2.CommandResult.FromString(one.payload) for one in found]

    def greet(self, host_id: str) -> None:
        """A session with the host begins: it is handed what is open, in the order of arrival."""
        for found in self._of(host_id):
            self._offer(found)

    def progress(self, host_id: str, progress: commands_pb2.CommandProgress) -> None:
        if self._is_open(host_id, progress.id):
            self._outbox.progress(progress)

    async def result(self, host_id: str, result: commands_pb2.CommandResult) -> None:
        """From a host. One that no open command of this host waits for is only acknowledged: it was stored before."""
        if self._is_open(host_id, result.id):
            await self._finish(result)
        self._mail.send(host_id, pb.ToHost(result_stored=pb.ResultStored(id=result.id)))

    def _offer(self, found: _Open) -> None:
        host_id = found.command.host_id
        if self._mail.send(host_id, pb.ToHost(command=found.command)):
            found.offered = True
            if found.cancelled:
                self._mail.send(host_id, pb.ToHost(cancel=commands_pb2.CancelCommand(id=found.command.id)))

    def _of(self, host_id: str) -> Iterator[_Open]:
        return (found for found in list(self._open.values()) if found.command.host_id == host_id)

    def _is_open(self, host_id: str, command_id: str) -> bool:
        found = self._open.get(command_id)
        if found is None:
            return False
        if found.command.host_id != host_id:
            _log.error("foreign_result_ignored", incident=True, host=host_id, command=command_id)
            return False
        return True

    async def _fail(self, command_id: str, error: TwinsiteError) -> None:
        await self._finish(commands_pb2.CommandResult(id=command_id, ok=False, error=status.to_proto(error)))

    async def _finish(self, result: commands_pb2.CommandResult) -> None:
        await asyncio.to_thread(self._journal.finished, result.id, result.SerializeToString())
        self._open.pop(result.id, None)
        self._outbox.result(result)
        _log.info("command_finished", command=result.id, ok=result.ok)
