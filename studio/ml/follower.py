"""python -m studio.ml.follower FOLDER RANK: does what the process that leads does, in silence. See `studio.ml.following`."""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from studio.errors import UserError
from studio.lifeline import die_with_parent
from studio.ml.following import FollowingJob
from studio.training import Stopped
from studio.training.registry import find


def follow(folder: Path, rank: int) -> int:
    """Does what the first process does; returns the exit code."""
    try:
        job = FollowingJob(folder, rank)
        plugin = find(job.order.plugin)
        plugin.train(plugin.Config(**job.order.config), job)
    except Stopped:
        return 0
    except UserError as error:
        words = {"message": error.message, "fields": error.fields, "code": error.code, "facts": error.facts}
        (folder / f"error-{rank}.json").write_text(json.dumps(words))
        return 1
    except Exception:  # whatever it was, the first process is to hear of it, not of a crash at this one's exit
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first process is asked to stop, and tells the others
    code = follow(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the process group may abort a process that ends in the ordinary way


if __name__ == "__main__":
    main()
