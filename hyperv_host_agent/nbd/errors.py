"""What can go wrong with an NBD server; nothing else leaves this package."""

from twinsite.errors import Failed, TwinsiteError, Unreachable


class NbdError(TwinsiteError):
    """Base of all; `server` is its address."""

    server: str


class NbdGone(NbdError, Unreachable):
    public = "the NBD server {error.server} cannot be reached: {error.problem}"

    def __init__(self, server: str, problem: str) -> None:
        self.server, self.problem = server, problem


class NbdRefused(NbdError, Failed):
    """The server does not have it, or cannot do it."""

    public = "the NBD server {error.server} refused {error.what}: {error.problem}"

    def __init__(self, server: str, what: str, problem: str) -> None:
        self.server, self.what, self.problem = server, what, problem


class ContextMissing(NbdError, Failed):
    """Not granted: what it would have said is unknown, never "clean"."""

    public = "the NBD server {error.server} does not say {error.context} of export {error.export}"

    def __init__(self, server: str, export: str, context: str) -> None:
        self.server, self.export, self.context = server, export, context


class NbdBroken(NbdError, Failed):
    """The server does not keep to the protocol; the connection is of no use any more."""

    public = "the NBD server {error.server} broke the protocol: {error.problem}"

    def __init__(self, server: str, problem: str) -> None:
        self.server, self.problem = server, problem


class NbdReadFailed(NbdError, Failed):
    """The server's answer to one request; the connection goes on."""

    public = "the NBD server {error.server} answered {error.problem} at offset {error.offset}"

    def __init__(self, server: str, offset: int, errno: int, problem: str) -> None:
        self.server, self.offset, self.errno, self.problem = server, offset, errno, problem
