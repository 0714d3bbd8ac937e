"""Training on cells that do not fit into memory: blocks in random order, through a bounded shuffle buffer.

Chunked files give single rows at random a thousand times more slowly than whole chunks. So blocks of neighbouring cells
are read in random order, those of one batch and type spread evenly over a pass; a buffer that holds cells of many
blocks is shuffled, and half of it is handed out before it is filled again. The order of the cells is drawn beforehand
from the seed, so that it does not depend on how fast a thread reads.

What is measured rather than trained on (standardisation, batch styles, descriptors, new adversaries, profile alignment,
population statistics) and the held-out cells are a sample that is read once and stays in memory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skbegan.data.sampler import rng_of_pass
from skbegan.data.splitting import split_validation
from skbegan.stored.adapters import ArrayRows
from skbegan.stored.lazy import KeptRows, LazyRows, spread_rows

BUFFER_BYTES = 2**29  # of the shuffle buffer; images that take less in all are read once and kept
SAMPLE_BYTES = 2**28  # of the cells that are measured and held out
SAMPLE_CELLS = 40960  # of them, at most; a fifth of them at most is held out
MAX_ROWS = 2**24  # with more cells than these, memory maps and arrays are streamed too
LONG_BLOCK = 4096  # rows of those
MAX_SLOTS = 2**17  # cells that the buffer holds at most, however small their images
BLOCKS_HELD = 64  # at once, where files allow: so many places a minibatch is drawn from


class Stream(NamedTuple):
    """What the order of a stream depends on besides its seed.

    Attributes
    ----------
    bounds : ndarray of int64, shape (n_blocks + 1,)
        Where blocks start, in rows.
    stratum : ndarray of int64, shape (n_blocks,)
        Batch and type of the cell in the middle of each block.
    held_out : ndarray of int64
        Rows that are not trained on, rising.
    slots : int
        Cells that the buffer holds, more only where blocks or minibatches are that long.
    """

    bounds: NDArray[np.int64]
    stratum: NDArray[np.int64]
    held_out: NDArray[np.int64]
    slots: int

    def enough_for(self, size: int) -> Stream:
        """Return the stream with a buffer that minibatches of a size can be drawn from while a block is read."""
        # A round holds two thirds of the places; a block and two minibatches are on their way in or out.
        least = 3 * int(np.diff(self.bounds).max()) + 6 * size
        return self._replace(slots=max(self.slots, least))

    @property
    def n_cells(self) -> int:
        """Cells that are trained on."""
        return int(self.bounds[-1]) - len(self.held_out)


class RowsExcept:
    """All rows but a few, as if they were an array of their numbers: nothing as long as the data is made.

    Parameters
    ----------
    n : int
    excluded : ndarray of int64
        Rising.
    """

    def __init__(self, n: int, excluded: NDArray[np.int64]) -> None:
        self.n, self.excluded = n, excluded
        self._before = excluded - np.arange(len(excluded))  # kept rows before each excluded one

    def __len__(self) -> int:
        return self.n - len(self.excluded)

    def __getitem__(self, positions: Any) -> NDArray[np.int64]:
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        found = np.asarray(positions, dtype=np.int64)
        return found + np.searchsorted(self._before, found, side="right")

    def positions(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of these rows come before each of some rows."""
        return bounds - np.searchsorted(self.excluded, bounds)


def has_to_stream(images: LazyRows, others: LazyRows) -> bool:
    """Whether pairs of images are too many to be drawn at random from all of them."""
    if len(images) > MAX_ROWS:
        return True
    stored = [each for each in (images, others) if each.blocks() is not None]
    return sum(each.nbytes for each in stored) > BUFFER_BYTES


def kept_if_few(images: Any) -> Any:
    """Return images that are stored in blocks, and not too many, as ones that were read once and are kept."""
    stored = isinstance(images, LazyRows) and not isinstance(images, KeptRows) and images.blocks() is not None
    return KeptRows(images, np.arange(len(images))) if stored else images


def kept_sample(images: Any) -> tuple[Any, NDArray[np.intp]]:
    """Return images, and rows of them that can be read in any order: all, or a sample in memory of stored blocks."""
    if not isinstance(images, LazyRows) or images.blocks() is None:
        return images, np.arange(len(images))
    rows = None
    if images.nbytes > BUFFER_BYTES:
        rows = spread_rows(images, min(SAMPLE_CELLS, max(64, SAMPLE_BYTES // (images.nbytes // len(images)))))
    rows = np.arange(len(images)) if rows is None else rows
    return KeptRows(images, rows), rows


def as_rows(images: Any) -> LazyRows:
    """Return an adapter of images: lazy images themselves, or one for an array."""
    return images if isinstance(images, LazyRows) else ArrayRows(images)


def draw_stream(
    bf: LazyRows, target: LazyRows, batch: NDArray[Any], cell_type: NDArray[Any], fraction: float, seed: int
) -> tuple[Stream, tuple[Any, Any], NDArray[np.int64]]:
    """Return a stream of all cells but those held out, the images with a sample of them kept, and the sample's rows.

    Held-out cells are a share of `fraction` of all, stratified by batch and cell type, or a fifth of the sample where
    that is less; they stay in memory too, and are not among the rows.
    """
    bounds, stratum, slots = plan_stream(bf, target, batch, cell_type)
    rows = draw_sample(bounds, stratum, (bf.nbytes + target.nbytes) // len(bf), seed)
    share = min(fraction * len(bf) / len(rows), 0.2 if fraction else 0.0)
    chosen, held_out = split_validation(batch[rows], cell_type[rows], share, seed)
    stream = Stream(bounds, stratum, np.sort(rows[held_out]), slots)
    return stream, (KeptRows(bf, rows), KeptRows(target, rows)), rows[chosen]


def plan_stream(
    bf: LazyRows, target: LazyRows, batch: NDArray[Any], cell_type: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Return bounds of blocks, the stratum of each, and how many cells the buffer holds.

    Blocks are those of the images that are stored in longer ones; short ones are joined.
    """
    n, bytes_per_pair = len(bf), (bf.nbytes + target.nbytes) // len(bf)
    slots = max(BLOCKS_HELD, min(MAX_SLOTS, BUFFER_BYTES // max(1, bytes_per_pair)))
    known = [bounds for bounds in (bf.blocks(), target.blocks()) if bounds is not None]
    stored = min(known, key=len) if known else np.append(np.arange(0, n, LONG_BLOCK, dtype=np.int64), n)
    wanted = np.arange(0, n, max(1, slots // BLOCKS_HELD))
    bounds = stored if len(stored) <= len(wanted) else np.unique(stored[np.searchsorted(stored, wanted)])
    bounds = np.append(bounds, n) if bounds[-1] < n else bounds
    middle = (bounds[:-1] + bounds[1:]) // 2
    codes = cell_type[middle].astype(np.int64) * (int(batch[middle].max()) + 1) + batch[middle]
    stratum = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    return bounds, stratum, slots


def draw_sample(
    bounds: NDArray[np.int64], stratum: NDArray[np.int64], bytes_per_pair: int, seed: int
) -> NDArray[np.int64]:
    """Return rising rows of a sample: some of each of some blocks, the strata of which are like those of all."""
    rng = np.random.RandomState(seed)
    n_rows = int(min(bounds[-1], SAMPLE_CELLS, max(64, SAMPLE_BYTES // max(1, bytes_per_pair))))
    sizes = np.diff(bounds)
    n_blocks = max(-(-n_rows // int(max(1, np.median(sizes)))), 4 * (int(stratum.max()) + 1), BLOCKS_HELD)
    order = spread_evenly(stratum, rng.random_sample(len(sizes)), rng.random_sample(len(sizes)))[:n_blocks]
    share = n_rows / sizes[order].sum()
    parts = []
    for block in order.tolist():
        wanted = min(int(sizes[block]), max(1, round(share * int(sizes[block]))))
        parts.append(bounds[block] + rng.choice(int(sizes[block]), wanted, replace=False))
    return np.sort(np.concatenate(parts)).astype(np.int64)


def spread_evenly(
    stratum: NDArray[np.int64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return an order of blocks, drawn by two random numbers each, any piece of which has its share of each stratum."""
    by_stratum = np.lexsort((first, stratum))
    counts = np.bincount(stratum)
    rank = np.empty(len(stratum))
    rank[by_stratum] = np.arange(len(stratum)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.argsort((rank + second) / counts[stratum], kind="stable")


class ShuffledBlocks:
    """The order of one pass, drawn round by round.

    Parameters
    ----------
    stream : Stream
    seed : int
    """

    def __init__(self, stream: Stream, seed: int) -> None:
        rows = RowsExcept(int(stream.bounds[-1]), stream.held_out)
        self.bounds = rows.positions(stream.bounds)  # of blocks, in positions
        self._rng = torch.Generator().manual_seed(seed)
        first, second = torch.rand(2, len(stream.stratum), generator=self._rng, dtype=torch.float64).numpy()
        self.blocks = spread_evenly(stream.stratum, first, second)
        self.n_drawn = 0  # blocks that the rounds so far took from
        self.held = torch.empty(0, dtype=torch.int64)
        self._full = 2 * stream.slots // 3

    def round(self) -> Tensor:
        """Return the positions that are next, at least one unless the pass is over, and keep the rest of the buffer."""
        parts, n_held = [self.held], len(self.held)
        while self.n_drawn < len(self.blocks) and n_held < self._full:
            start, stop = self.range_of(int(self.blocks[self.n_drawn]))
            parts.append(torch.arange(start, stop))
            n_held, self.n_drawn = n_held + stop - start, self.n_drawn + 1
        shuffled = torch.cat(parts)[torch.randperm(n_held, generator=self._rng)]
        n_out = n_held if self.n_drawn == len(self.blocks) else n_held - self._full // 2
        self.held = shuffled[n_out:].clone()
        return shuffled[:n_out]

    def range_of(self, block: int) -> tuple[int, int]:
        """Return where the positions of a block start and stop."""
        return int(self.bounds[block]), int(self.bounds[block + 1])

    def parts(self, pending: Tensor, n_drawn: int) -> Iterator[NDArray[np.int64]]:
        """Yield positions block by block as they are to be read: those pending, then all of later blocks."""
        if len(pending):
            rising = np.sort(pending.numpy())
            block = np.searchsorted(self.bounds, rising, side="right")
            yield from np.split(rising, np.flatnonzero(np.diff(block)) + 1)
        for block in self.blocks[n_drawn:].tolist():
            start, stop = self.range_of(block)
            if stop > start:
                yield np.arange(start, stop)


class StreamSampler:
    """Minibatches of streamed cells, epoch by epoch: what :class:`~skbegan.data.sampler.Sampler` is for all others.

    Parameters
    ----------
    stream : Stream
    buffer : RowBuffer
        Is told what will be needed.
    size : int
        Cells per minibatch.
    rng : torch.Generator
        CPU generator; each pass draws a seed from it when it begins.
    steps : int or None, default=None
        Minibatches per epoch; None is one pass.
    """

    def __init__(
        self, stream: Stream, buffer: RowBuffer, size: int, rng: torch.Generator, steps: int | None = None
    ) -> None:
        self.stream, self.buffer, self.rng = stream, buffer, rng
        self.n, self.size, self.minibatch_size = stream.n_cells, min(size, stream.n_cells), size
        self.n_steps = self.n // self.size if steps is None else steps
        self._drawn_at: Tensor | None = None
        self._done = 0
        self._order: ShuffledBlocks | None = None
        self._next = torch.empty(0, dtype=torch.int64)

    def epoch(self) -> Iterator[Tensor]:
        """Yield the minibatches of one epoch; cells left over at the end of a pass wait for another one."""
        for _ in range(self.n_steps):
            if self._order is None or self._done + self.size > self.n:
                self._drawn_at = self.rng.get_state()
                self._begin(self.rng, 0)
            positions = self._draw()
            self.buffer.expect(positions)
            yield positions

    def state(self) -> dict[str, Any] | None:
        """Return where the pass is, None between passes."""
        if self._drawn_at is None or self._done + self.size > self.n:
            return None
        return {"drawn_at": self._drawn_at, "done": self._done, "slots": self.stream.slots}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take up what :meth:`state` returned.

        Raises
        ------
        ValueError, LookupError, TypeError, RuntimeError
            If it is of another sampler.
        """
        if state is None:
            return
        if state["slots"] != self.stream.slots:
            raise ValueError("the order of its cells is that of a buffer of another size")
        rng, done = rng_of_pass(state, self.n, self.size)
        self._drawn_at = state["drawn_at"]
        self._begin(rng, done)

    def _begin(self, rng: torch.Generator, done: int) -> None:
        seed = int(torch.randint(2**62, (1,), generator=rng))
        self._order, self._done = ShuffledBlocks(self.stream, seed), 0
        self._next = self._order.round()
        while done - self._done > len(self._next):
            self._done += len(self._next)
            self._next = self._order.round()
        self._next, self._done = self._next[done - self._done :], done
        pending = torch.cat([self._next, self._order.held])
        self.buffer.begin(self._order.parts(pending, self._order.n_drawn))

    def _draw(self) -> Tensor:
        assert self._order is not None
        while len(self._next) < self.size:
            self._next = torch.cat([self._next, self._order.round()])
        positions, self._next = self._next[: self.size], self._next[self.size :]
        self._done += self.size
        return positions


class _Shared:
    """What the reading thread and the training thread both hold; the thread holds nothing else."""

    def __init__(self, sources: tuple[LazyRows, ...], rows: RowsExcept, slots: int) -> None:
        self.sources, self.rows = sources, rows
        self.pools = [np.empty((slots, *source.shape[1:]), source.dtype) for source in sources]
        self.changed = threading.Condition()
        self.reading = threading.Lock()  # a source is asked by one thread at a time
        self.slot_of: dict[int, int] = {}
        self.free = list(range(slots))
        self.error: BaseException | None = None
        self.run = 0  # a thread ends when it is no longer that of the run

    def fill(self, parts: Iterator[NDArray[np.int64]], run: int) -> None:
        """Read parts one after the other as slots become free."""
        try:
            for positions in parts:
                if not self._put(positions, run):
                    return
        except BaseException as error:
            with self.changed:
                self.error = error
                self.changed.notify_all()

    def _has_room(self, n: int, run: int) -> bool:
        """Wait for free slots; False where the thread is to end, since it is not needed or Python is about to exit."""
        while self.run == run and threading.main_thread().is_alive():
            if len(self.free) >= n:
                return True
            self.changed.wait(1.0)
        return False

    def _put(self, positions: NDArray[np.int64], run: int) -> bool:
        with self.changed:
            if not self._has_room(len(positions), run):
                return False
            slots = self.free[-len(positions) :]
            del self.free[-len(positions) :]
        rows = self.rows[positions]
        for pool, source in zip(self.pools, self.sources, strict=True):
            with self.reading:
                pool[slots] = source.read(rows)
        with self.changed:
            if self.run != run:
                return False
            self.slot_of.update(zip(positions.tolist(), slots, strict=True))
            self.changed.notify_all()
        return True

    def stop(self) -> None:
        with self.changed:
            self.run += 1
            self.changed.notify_all()


class RowBuffer:
    """Pairs of images that a thread reads before they are needed, in bounded memory.

    Parameters
    ----------
    sources : tuple of LazyRows
    rows : RowsExcept
        Of each position.
    slots : int
        Cells that are held at most.
    """

    def __init__(self, sources: tuple[LazyRows, ...], rows: RowsExcept, slots: int) -> None:
        self._shared = _Shared(sources, rows, slots)
        self._thread: threading.Thread | None = None
        self._expected: NDArray[np.int64] = np.empty(0, np.int64)
        weakref.finalize(self, self._shared.stop)

    def begin(self, parts: Iterator[NDArray[np.int64]]) -> None:
        """Forget what is held and read other cells, block by block."""
        shared = self._shared
        shared.stop()
        if self._thread is not None:
            self._thread.join()
        shared.slot_of, shared.free, shared.error = {}, list(range(len(shared.pools[0]))), None
        self._expected = np.empty(0, np.int64)
        # No daemon: Python waits for the block that is read at its exit. Libraries of C++ end the process with an
        # error when a thread in them is cut off.
        self._thread = threading.Thread(target=shared.fill, args=(parts, shared.run), name="skbegan reads ahead")
        self._thread.start()

    def expect(self, positions: Tensor) -> None:
        """Give back the places of the cells that were expected before, and wait for other ones."""
        shared, expected = self._shared, positions.numpy()
        with shared.changed:
            shared.free.extend(shared.slot_of.pop(position) for position in self._expected.tolist())
            shared.changed.notify_all()
            wanted = expected.tolist()
            shared.changed.wait_for(
                lambda: shared.error is not None or all(position in shared.slot_of for position in wanted)
            )
            if shared.error is not None:
                raise shared.error
        self._expected = expected.copy()

    def take(self, positions: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return images of the cells at some positions: those that are expected, or any others, which are read now."""
        shared = self._shared
        with shared.changed:
            slots = [shared.slot_of.get(position, -1) for position in positions.tolist()]
        if min(slots, default=-1) >= 0 and np.isin(positions, self._expected).all():
            return [pool[slots] for pool in shared.pools]
        with shared.reading:
            return [source.read(shared.rows[positions]) for source in shared.sources]
