"""The error tree. An error is a type with facts; its text is written once, as class attributes.

Subclasses name facts as instance attributes and refer to them in their texts with ``{error.fact}``. The category a
class derives from decides its gRPC status (`twinsite.status`) and the CLI's exit code; nothing else does.
"""

import re
from typing import ClassVar


class TwinsiteError(Exception):
    """Base of every error that reaches a person.

    `code` is stable and printed with the text; `public` says what happened, `cause` why, `still_works` what did not
    happen and what is safe, `next_step` what to do. All four may hold ``{error.fact}``.
    """

    code: ClassVar[str]
    public: str = "the operation failed"
    cause: str = ""
    still_works: str = ""
    next_step: str = ""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:  # KeyExpired → KEY_EXPIRED
            cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).upper()

    def text(self, field: str) -> str:
        """One of the four texts with the facts filled in."""
        template: str = getattr(self, field)
        return template.format(error=self)

    def __str__(self) -> str:
        return self.text("public")


class InvalidInput(TwinsiteError):
    """The request itself is wrong; repeating it will not help."""


class NotFound(TwinsiteError):
    """A thing the request names does not exist, or the name fits several."""


class Conflict(TwinsiteError):
    """The thing exists already, or somebody else changed it."""


class Precondition(TwinsiteError):
    """The state forbids it now."""


class Unauthenticated(TwinsiteError):
    """Who is asking is not established, or no longer valid."""


class Denied(TwinsiteError):
    """Who is asking is known and may not do this."""


class Exhausted(TwinsiteError):
    """Space, rate or count is used up; later it may work."""


class Unreachable(TwinsiteError):
    """The other side does not answer; repeating may help."""


class Aborted(TwinsiteError):
    """The operation was overtaken by another one."""


class Failed(TwinsiteError):
    """It ran and failed for a reason on this side."""


class Internal(TwinsiteError):
    """A defect of ours. Details are in the log, never in the text."""

    public = "internal error"
    next_step = "look at the program's log at this time and report what you see there"
