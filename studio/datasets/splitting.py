"""Which rows are held back for validation, and which repeat an earlier row: told from 64-bit hashes of the canonical rows."""

import hashlib

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
ALWAYS_HELD_BACK = 20
"""From this many rows on, at least one is held back (unless the share is 0)."""


def row_hash(digest: bytes) -> int:
    """The first 64 bits of a row's SHA-256. Among a million rows, two different ones agree with a chance of 3e-8."""
    return int.from_bytes(digest[:8], "little")


def duplicates(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """True for each row that repeats an earlier one."""
    repeated = np.ones(len(hashes), dtype=bool)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    return repeated


def validation(hashes: Hashes, *, percent: float, seed: int) -> npt.NDArray[np.bool_]:
    """True for each row held back: `percent` of the rows, the same ones for the same seed whatever their order.

    Rows are drawn in the order of hash(seed, row). Equal rows share a hash, so they are drawn together or not at all, and a
    dataset that grows keeps nearly all of its validation rows. At least one row stays for training.
    """
    wanted = round(len(hashes) * percent / 100)
    if percent > 0 and len(hashes) >= ALWAYS_HELD_BACK:
        wanted = max(1, wanted)
    keys, counts = np.unique(_seeded(hashes, seed), return_counts=True)
    wanted = min(wanted, len(hashes) - 1)
    drawn: list[int] = []
    for position, count in enumerate(counts.tolist()):
        if count <= wanted:
            drawn.append(position)
            wanted -= count
        if not wanted:
            break
    return np.isin(_seeded(hashes, seed), keys[drawn])


def _seeded(hashes: Hashes, seed: int) -> Hashes:
    """Mixes the seed into each hash: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection on 64 bits."""
    start = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    mixed = hashes ^ start
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
