"""Bytes of the NBD protocol: numbers and layouts, as in its doc/proto.md."""

import errno
import os
import struct
from typing import Final

GREETING: Final = struct.Struct(">8sQH")  # NBDMAGIC, IHAVEOPT, flags
MAGIC: Final = b"NBDMAGIC"
HAVE_OPTION: Final = 0x49484156454F5054
OPTION: Final = struct.Struct(">QII")  # IHAVEOPT, option, length
OPTION_REPLY: Final = struct.Struct(">QIII")  # magic, option, type, length
OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REQUEST_MAGIC: Final = 0x25609513
CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length
CHUNK_MAGIC: Final = 0x668E33EF
OFFSET: Final = struct.Struct(">Q")
HOLE: Final = struct.Struct(">QI")
NUMBER: Final = struct.Struct(">I")
ERROR: Final = struct.Struct(">IH")  # errno, length of the message

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_SET_META_CONTEXT: Final = 10
REP_ACK: Final = 1
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3

CMD_READ: Final = 0
CMD_DISCONNECT: Final = 2
CMD_BLOCK_STATUS: Final = 7

FLAG_MULTI_CONN: Final = 1 << 8
DONE: Final = 1
CHUNK_NONE: Final = 0
CHUNK_DATA: Final = 1
CHUNK_HOLE: Final = 2
CHUNK_STATUS: Final = 5
CHUNK_ERROR: Final = 1 << 15
CHUNK_ERROR_OFFSET: Final = CHUNK_ERROR | 2

_SHUTDOWN: Final = 108  # ESHUTDOWN, by the protocol, whatever the system calls it


def error_name(code: int) -> str:
    """For people: "EIO (Input/output error)"."""
    if code == _SHUTDOWN:
        return "that it is shutting down"
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})" if code in errno.errorcode else f"error {code}"


def printable(text: bytes) -> str:
    """What a server says, fit for a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text.decode(errors="replace"))
