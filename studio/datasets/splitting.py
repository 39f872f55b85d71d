"""Which rows are held back for validation, and which repeat an earlier row: told from 64-bit hashes of the canonical rows."""

import hashlib

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Chosen = npt.NDArray[np.bool_]
ALWAYS_HELD_BACK = 20
"""From this many rows on, at least one is held back (unless the share is 0)."""
NOTHING = 0
"""The hash in `strata` and `together` of a row that has no value there."""
TRAIN, VALIDATION, NEW = 0, 1, -1
"""What `kept` says of a row: the split that it had before, or that it had none."""


def row_hash(digest: bytes) -> int:
    """The first 64 bits of a row's SHA-256. Among a million rows, two different ones agree with a chance of 3e-8."""
    return int.from_bytes(digest[:8], "little")


def value_hash(value: object) -> int:
    """64 bits of what stands in a column that the split goes by; NOTHING for an empty cell."""
    if value is None or value == "":
        return NOTHING
    return row_hash(hashlib.sha256(str(value).encode(errors="surrogatepass")).digest()) or 1


def duplicates(hashes: Hashes) -> Chosen:
    """True for each row that repeats an earlier one."""
    repeated = np.ones(len(hashes), dtype=bool)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    return repeated


def validation(
    hashes: Hashes,
    *,
    percent: float,
    seed: int,
    strata: Hashes | None = None,
    together: Hashes | None = None,
    groups: Numbers | None = None,
    kept: npt.NDArray[np.int8] | None = None,
) -> Chosen:
    """True for each row held back: `percent` of the rows, the same ones for the same seed whatever their order.

    Rows are drawn in units that are never parted: equal rows, rows of one near-duplicate group (`groups`, -1: of none), and rows with the
    same value in `together`, also where only a chain of these connects them. Units are drawn in the order of hash(seed, unit), so a
    dataset that grows keeps nearly all of its validation rows. Of each of the `strata` its share is drawn, by largest remainders; a unit
    counts as the stratum that most of its rows have. What a stratum cannot give, since its units are too large, others do; where every
    unit is too large, the smallest is drawn if it leaves at least half of the rows for training.

    A row keeps the split that it had (`kept`). Where rows of one unit had different ones, being held back wins: nothing that a model was
    tested on is ever taught. So all may be held back at the end, and no row may be left for training; otherwise at least one is.
    """
    wanted = round(len(hashes) * percent / 100)
    if percent > 0 and len(hashes) >= ALWAYS_HELD_BACK:
        wanted = max(1, wanted)
    units = _units(hashes, seed=seed, together=together, groups=groups)
    drawn = np.zeros(len(units.sizes), dtype=bool)
    fresh = ~drawn
    if kept is not None:
        drawn = units.any_of(kept == VALIDATION)
        fresh = ~drawn & ~units.any_of(kept == TRAIN)
    spare = min(wanted, len(hashes) - 1) - int(units.sizes[drawn].sum())
    if spare > 0 and fresh.any():
        homes = np.zeros(len(units.sizes), dtype=np.int64) if strata is None else units.majority(strata, seed=seed)
        rooms = _shares(homes, units.sizes, drawn, percent=percent, total=min(wanted, len(hashes) - 1))
        _draw(drawn, fresh, units.sizes, homes, rooms, spare)
        if not drawn.any() and (together is not None or groups is not None):
            _draw_smallest(drawn, fresh, units.sizes, at_most=len(hashes) // 2)
    return drawn[units.of]


class _Units:
    """What is drawn together or not at all, numbered in the order in which it is drawn."""

    def __init__(self, of: Numbers, sizes: Numbers):
        self.of, self.sizes = of, sizes
        """The unit of each row; the rows of each unit."""

    def any_of(self, rows: Chosen) -> Chosen:
        """True for each unit that has one of the rows."""
        found = np.zeros(len(self.sizes), dtype=bool)
        found[self.of[rows]] = True
        return found

    def majority(self, strata: Hashes, *, seed: int) -> Numbers:
        """The stratum that most rows of each unit have; numbered in the order of hash(seed, stratum), which also breaks ties."""
        _, numbers = np.unique(seeded(strata, seed), return_inverse=True)
        pairs, counts = np.unique(self.of * (int(numbers.max()) + 1) + numbers, return_counts=True)
        unit, stratum = np.divmod(pairs, int(numbers.max()) + 1)
        best = np.lexsort((stratum, -counts, unit))
        found: Numbers = stratum[best[np.unique(unit[best], return_index=True)[1]]]
        return found


def _units(hashes: Hashes, *, seed: int, together: Hashes | None, groups: Numbers | None) -> _Units:
    keys = seeded(hashes, seed)
    if together is None and groups is None:
        _, of, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        return _Units(of, sizes)
    edges = [_edges(hashes, np.ones(len(hashes), dtype=bool))]
    if together is not None:
        edges.append(_edges(together, together != NOTHING))
        # A conversation that grows keeps its place in the draw.
        keys = np.where(together != NOTHING, seeded(together, f"{seed} together"), keys)
    if groups is not None:
        edges.append(_edges(groups, groups >= 0))
    _, component = np.unique(connected(len(hashes), *map(np.concatenate, zip(*edges, strict=True))), return_inverse=True)
    # A unit is drawn where its first key would be.
    first = np.full(int(component.max()) + 1, np.iinfo(np.uint64).max)
    np.minimum.at(first, component, keys)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    of = place[component]
    return _Units(of, np.bincount(of))


def _edges(values: npt.NDArray[np.generic], has_one: Chosen) -> tuple[Numbers, Numbers]:
    """Pairs of rows with the same value: each row that has one, with the first of its value."""
    rows = np.flatnonzero(has_one)
    _, first, of = np.unique(values[rows], return_index=True, return_inverse=True)
    return rows, rows[first[of]]


def connected(number: int, one: Numbers, other: Numbers) -> Numbers:
    """The least index that is connected with each of `number` nodes by the edges `one`-`other`.

    Every root hooks onto the least of its neighbours, and every node onto its root, until no edge joins two roots. Whatever the order,
    the roots that are left become half as many in every second round.
    """
    roots = np.arange(number)
    while len(one):
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        joins = low != high
        one, other = one[joins], other[joins]
        np.minimum.at(roots, high[joins], low[joins])
        while not np.array_equal(nearer := roots[roots], roots):
            roots = nearer
    return roots


def _shares(homes: Numbers, sizes: Numbers, drawn: Chosen, *, percent: float, total: int) -> Numbers:
    """How many rows of each stratum may still be drawn, so that each gives `percent` of its own and all give `total`."""
    rows = np.bincount(homes, weights=sizes)
    exact = rows * min(percent / 100, total / rows.sum()) if rows.sum() else rows
    shares = np.floor(exact).astype(np.int64)
    missing = max(0, total - int(shares.sum()))
    shares[np.argsort(-(exact - shares), kind="stable")[:missing]] += 1
    held = np.bincount(homes, weights=sizes * drawn, minlength=len(rows)).astype(np.int64)
    rooms: Numbers = np.maximum(shares - held, 0)
    return rooms


def _draw(drawn: Chosen, fresh: Chosen, sizes: Numbers, homes: Numbers, rooms: Numbers, spare: int) -> None:
    """Marks `fresh` units as drawn: in their order while their stratum has room, then whatever fits."""
    room = rooms.tolist()
    candidates = np.flatnonzero(fresh)
    passed_over = []
    for unit, size, home in zip(candidates.tolist(), sizes[candidates].tolist(), homes[candidates].tolist(), strict=True):
        if not spare:
            return
        if size <= room[home] and size <= spare:
            drawn[unit] = True
            room[home] -= size
            spare -= size
        elif size <= spare:
            passed_over.append((unit, size))
    for unit, size in passed_over:
        if size <= spare:
            drawn[unit] = True
            spare -= size


def _draw_smallest(drawn: Chosen, fresh: Chosen, sizes: Numbers, *, at_most: int) -> None:
    candidates = np.flatnonzero(fresh)
    smallest = candidates[np.argmin(sizes[candidates])]
    if sizes[smallest] <= at_most:
        drawn[smallest] = True


def sample(hashes: Hashes, number: int, *, seed: int) -> Numbers:
    """The indices of `number` of the rows, ascending: the same rows for the same seed whatever their order, but for equal ones."""
    if number >= len(hashes):
        return np.arange(len(hashes))
    order = np.argsort(seeded(hashes, seed), kind="stable")
    return np.sort(order[:number])


def seeded(hashes: Hashes, seed: int | str) -> Hashes:
    """Mixes the seed into each hash: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection on 64 bits."""
    start = np.uint64(int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little"))
    mixed = hashes ^ start
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
