"""What may become a result: a folder of plain files, not too many and not too large. Looks at names and sizes, and reads nothing."""

import stat

from studio.errors import UserError
from studio.training.job import Job
from studio.worker.events import clean

MOST_FILES = 5000
"""Files of a result: their names travel in one line."""
LARGEST_RESULT = 20 * 10**9
"""Bytes that the result of a training may take besides four times those of its base model: in fp32 it is twice as large as it came."""


def refuse_what_is_no_result(job: Job) -> None:
    """A result is a folder of plain files. Looks at names and sizes before anything is read. Raises UserError."""
    if job.out.is_symlink() or not job.out.is_dir():
        raise UserError("The folder for the result was replaced by something else. Write into job.out, and leave the folder itself alone.")
    count = size = 0
    for path in job.out.rglob("*"):
        facts, name = path.lstat(), path.relative_to(job.out).as_posix()
        if stat.S_ISDIR(facts.st_mode):
            continue
        if not stat.S_ISREG(facts.st_mode):
            what = "a link" if stat.S_ISLNK(facts.st_mode) else "no plain file"
            raise UserError(f"{clean(name)[:80]!r} in the result is {what}. Copy the file itself into job.out.")
        if not name.isprintable() or "\\" in name:
            raise UserError(f"A file of the result cannot be called {ascii(name)[:80]}. Use letters, digits, dots and dashes.")
        count, size = count + 1, size + facts.st_size
    if count > MOST_FILES:
        raise UserError(f"The result has {count} files; at most {MOST_FILES} are right. Pack what belongs together into one.")
    model = getattr(job, "model", None)
    if model is None:
        return  # an import is as large as what it imports
    most = LARGEST_RESULT + 4 * model.size
    if size > most:
        raise UserError(f"The result takes {size / 1e9:.0f} GB; at most {most / 1e9:.0f} GB are right. Leave in job.out what is of use.")
