"""The states that a run can go on from: sealed folders `step-…` in one folder, with the last two and the best kept. No torch, no Django.

What stands in a state is its plugin's; that it is whole is told by its manifest.
"""

import math
from collections.abc import Callable
from pathlib import Path

from studio.storage import commit_folder, is_whole, read_manifest, remove_folder

KEPT = 2
PREFIX = "step-"


def states(folder: Path) -> list[Path]:
    """The sealed states in a folder, the oldest first; those that were only half written are not among them."""
    found = [
        path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal() and (path / "manifest.json").is_file()
    ]
    return sorted(found, key=step_of)


def step_of(state: Path) -> int:
    return int(state.name.removeprefix(PREFIX))


def newest(folder: Path) -> Path | None:
    """The latest state whose files are what its manifest says; damaged ones are passed over. Reads every byte of what it answers."""
    return next((state for state in reversed(states(folder)) if is_whole(state)), None)


def save_state(folder: Path, *, step: int, write: Callable[[Path], None], validation_loss: float | None = None) -> Path:
    """Seals what `write` puts into the folder that it is given, then deletes the states that are no longer needed; returns the state.

    One that stands there already for this step was damaged, or another attempt's, and is replaced.
    """
    state = folder / f"{PREFIX}{step:08d}"
    temp = folder / f"{state.name}.part"
    remove_folder(temp)
    temp.mkdir(parents=True)
    write(temp)
    remove_folder(state)
    commit_folder(temp, state, step=step, validation_loss=validation_loss)
    prune(folder, newest=step)
    return state


def prune(folder: Path, *, newest: int) -> None:
    """Deletes all states but the last two and the best; also those after `newest`, which were damaged, or nobody could go on from them."""
    past = [state for state in states(folder) if step_of(state) <= newest]
    kept = {*past[-KEPT:], *best(past)}
    for path in folder.glob(f"{PREFIX}*"):
        if path not in kept:
            remove_folder(path)


def best(among: list[Path]) -> list[Path]:
    """The state with the lowest validation loss, alone in a list; empty where none has one."""
    losses = {state: loss for state in among if (loss := validation_loss(state)) < math.inf}
    return [min(losses, key=losses.__getitem__)] if losses else []


def validation_loss(state: Path) -> float:
    """Infinity where none was measured at this state."""
    facts = read_manifest(state)["facts"]
    loss = facts.get("validation_loss") if isinstance(facts, dict) else None
    return float(loss) if isinstance(loss, int | float) else math.inf
