"""Passwords, as Argon2id. At most two hashes at a time: each takes 64 MiB and a third of a second."""

import asyncio
import os
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from coordinator.access.model import SHORTEST_PASSWORD, PasswordTooShort

_MEMORY: Final = 64 * 1024  # KiB
_LONGEST: Final = 1024  # characters


class Passwords:
    """One per process: it holds the limit."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(2)
        self._nobody = ""

    async def derive(self, password: str) -> str:
        """PHC form, for storing. Raises PasswordTooShort."""
        if not SHORTEST_PASSWORD <= len(password) <= _LONGEST:
            raise PasswordTooShort
        async with self._slots:
            return await asyncio.to_thread(_derive, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Takes as long for a user that does not exist (`stored` None) as for one that does."""
        async with self._slots:
            if stored is None:
                if not self._nobody:
                    self._nobody = await asyncio.to_thread(_derive, os.urandom(16).hex())
                stored = self._nobody
                await asyncio.to_thread(_verify, stored, password[:_LONGEST])
                return False
            return await asyncio.to_thread(_verify, stored, password[:_LONGEST])


def _derive(password: str) -> str:
    return Argon2id(salt=os.urandom(16), length=32, iterations=3, lanes=1, memory_cost=_MEMORY).derive_phc_encoded(
        password.encode()
    )


def _verify(stored: str, password: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), stored)
    except InvalidKey:
        return False
    return True
