"""Writes a layer: data first, front to back, then the tables, the header last.

A file that was not finished has no magic. The map of what is where stays in memory in the pages of the later L2
tables: 4 KiB for each 32 MiB of the disk that the layer touches, so 8 MiB for 64 GiB of data.
"""

import os
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

from hyperv_host_agent.store.bulk import BulkWriter
from hyperv_host_agent.store.files import sync, write_all
from hyperv_host_agent.store.formats.qcow2 import (
    CLUSTER_BITS,
    COMPRESSED,
    COPIED,
    OFFSET_BITS,
    PAGE_ENTRIES,
    TABLE_ENTRIES,
    ZERO,
    Header,
)
from twinsite.extents import CLUSTER, Run, clusters

_PAGE_BYTES: Final = PAGE_ENTRIES * 8
_PAGES_PER_TABLE: Final = TABLE_ENTRIES // PAGE_ENTRIES
_COUNTS_PER_BLOCK: Final = CLUSTER // 2  # refcounts have 16 bits
_ALL_ZERO: Final = array("Q", [ZERO]) * PAGE_ENTRIES  # shared by all pages of a long zero run; never modified


class LayerWriter:
    """One layer, being written to `fd`. It keeps no other state in the file than the data up to `position`.

    So a data area that was written by another process goes on after its `record`s were repeated, and `finish` that
    ran out of space is called again.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size = fd, size
        self.position = CLUSTER  # where the next frame goes; the first cluster is the header's
        self.data_clusters = 0
        self.zero_clusters = 0
        self._bulk = BulkWriter(fd, CLUSTER)
        self._pages: dict[int, array[int]] = {}
        self._counts = array("H", [1])  # references to each cluster of the file

    def held(self, indexes: Sequence[int], zero_runs: Iterable[Run]) -> int | None:
        """The first of these clusters that the layer has already."""
        pages = self._pages
        for index in indexes:
            page = pages.get(index // PAGE_ENTRIES)
            if page is not None and page[index % PAGE_ENTRIES]:
                return index
        for run in zero_runs:
            for number in range(run.start // PAGE_ENTRIES, (run.end - 1) // PAGE_ENTRIES + 1):
                page = pages.get(number)
                if page is not None:
                    first = number * PAGE_ENTRIES
                    for index in range(max(run.start, first), min(run.end, first + PAGE_ENTRIES)):
                        if page[index - first]:
                            return index
        return None

    def write(self, payload: bytes | memoryview) -> None:
        """Write frames at `position`, which stays until they are recorded; they are in the file after `flush`.

        Raises OSError.
        """
        self._bulk.write(payload, self.position)

    def flush(self) -> None:
        """What was written is in the file, ready to be synced. Raises OSError."""
        self._bulk.flush()

    def record(self, indexes: Sequence[int], lengths: Sequence[int]) -> None:
        """The frames of these clusters, back to back, are at `position`."""
        pages, counts, at = self._pages, self._counts, self.position
        number, page = -1, _ALL_ZERO
        for index, length in zip(indexes, lengths, strict=True):
            if index // PAGE_ENTRIES != number:
                number = index // PAGE_ENTRIES
                page = self._page(pages, number)
            page[index % PAGE_ENTRIES] = COMPRESSED | ((at & 511) + length - 1 >> 9) << OFFSET_BITS | at
            first, last = at >> CLUSTER_BITS, (at + length - 1) >> CLUSTER_BITS
            at += length
            # QEMU counts a frame in every cluster of the file that its sectors touch.
            if last >= len(counts):
                counts.extend([0] * (last + 1 - len(counts)))
            counts[first] += 1
            while first < last:
                first += 1
                counts[first] += 1
        self.position = at
        self.data_clusters += len(indexes)

    def skip(self, length: int) -> None:
        """What is at `position` is no part of the disk: an older version. To QEMU that space is free."""
        self.position += length
        last = (self.position - 1) >> CLUSTER_BITS
        if last >= len(self._counts):
            self._counts.extend([0] * (last + 1 - len(self._counts)))

    def record_zeros(self, run: Run) -> None:
        """The clusters of the run read as zeros."""
        pages, self.zero_clusters = self._pages, self.zero_clusters + run.count
        index = run.start
        while index < run.end:
            number, first = index // PAGE_ENTRIES, index % PAGE_ENTRIES
            count = min(PAGE_ENTRIES - first, run.end - index)
            if count == PAGE_ENTRIES:
                pages[number] = _ALL_ZERO
            else:
                self._page(pages, number)[first : first + count] = _ALL_ZERO[:count]
            index += count

    def tables_bytes(self) -> int:
        """About how much `finish` writes."""
        return len(self._pages) * _PAGE_BYTES + self.position // CLUSTER * 2 + 4 * CLUSTER

    def finish(self, backing: str | None) -> None:
        """Write tables, sync, write the header, sync. Raises OSError; on ENOSPC it may be called again.

        Without a backing file what is not mapped reads as zeros, so zero clusters take no entry.
        """
        self._bulk.flush()
        self._bulk.ordinary()
        # Anything past the data is a rest of an attempt before; holes in the tables must read as zeros.
        os.ftruncate(self.fd, self.position)
        end = -(-self.position // CLUSTER) * CLUSTER
        l1 = array("Q", bytes(max(1, -(-clusters(self.size) // TABLE_ENTRIES)) * 8))
        end = self._write_l2(l1, end, keep_zeros=backing is not None)
        l1_offset = end
        write_all(self.fd, _big_endian(l1), l1_offset)
        end += -(-len(l1) * 8 // CLUSTER) * CLUSTER
        refcount_offset, refcount_clusters, end = self._write_refcounts(end)
        os.ftruncate(self.fd, end)
        sync(self.fd)
        header = Header(self.size, backing, l1_offset, len(l1), refcount_offset, refcount_clusters)
        write_all(self.fd, header.encode(), 0)
        sync(self.fd)

    @staticmethod
    def _page(pages: "dict[int, array[int]]", number: int) -> "array[int]":
        page = pages.get(number)
        if page is None:
            page = pages[number] = array("Q", bytes(_PAGE_BYTES))
        return page

    def _write_l2(self, l1: "array[int]", end: int, *, keep_zeros: bool) -> int:
        """Write the touched pages of the L2 tables, fill in `l1`; where the file ends then."""
        table = -1
        for number in sorted(self._pages):
            page = self._pages[number]
            if not keep_zeros:
                page = array("Q", (0 if entry == ZERO else entry for entry in page)) if ZERO in page else page
                if not any(page):
                    continue
            if number // _PAGES_PER_TABLE != table:
                table = number // _PAGES_PER_TABLE
                l1[table] = COPIED | end
                end += CLUSTER
            write_all(self.fd, _big_endian(page), end - CLUSTER + number % _PAGES_PER_TABLE * _PAGE_BYTES)
        return end

    def _write_refcounts(self, end: int) -> tuple[int, int, int]:
        """Write refcount blocks and their table at `end`: the table's offset and clusters, where the file ends."""
        before = end // CLUSTER
        blocks = tables = 0
        while True:  # they count themselves too
            total = before + blocks + tables
            needed = -(-total // _COUNTS_PER_BLOCK)
            if (needed, -(-needed * 8 // CLUSTER)) == (blocks, tables):
                break
            blocks, tables = needed, -(-needed * 8 // CLUSTER)
        counts = array("H", self._counts)
        counts.extend(array("H", [1]) * (total - len(counts)))
        if sys.byteorder == "little":
            counts.byteswap()
        write_all(self.fd, counts.tobytes(), end)
        table = array("Q", (end + block * CLUSTER for block in range(blocks)))
        table_offset = end + blocks * CLUSTER
        write_all(self.fd, _big_endian(table), table_offset)
        return table_offset, tables, table_offset + tables * CLUSTER


def _big_endian(values: "array[int]") -> bytes:
    if sys.byteorder == "little":
        values = array("Q", values)
        values.byteswap()
    return values.tobytes()
