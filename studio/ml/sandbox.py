"""Locks this process in before it opens a stranger's file: no network, no files but those it needs, bounded memory, time and disk.

What the kernel refuses, as many containers' do, is gone on without; `enter` says what holds. Linux's means are reached through ctypes:
namespaces (unshare(2)), Landlock (landlock(7), kernel documentation userspace-api/landlock) and no_new_privs (prctl(2)). No torch.
"""

import ctypes
import os
import resource
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from studio.lifeline import LIBC, die_with_parent

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000  # linux/sched.h
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
GET_VERSION, PATH_BENEATH = 1, 1  # linux/landlock.h
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
ACCESSES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Version of Landlock -> what it can forbid of files, all of it named here."""
READ = READ_FILE | READ_DIR | EXECUTE
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""What can be allowed of a file that is no folder."""
NO_TCP, NO_OUTSIDE = 0b11, 0b11
"""Neither listening nor connecting; neither abstract sockets nor signals of processes outside."""
SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat",
    "/sys/devices/system", "/dev/urandom", "/dev/zero",
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    memory: int
    """Bytes that it may allocate; mapped files are not counted."""
    mapped: int
    """Bytes of files that it may map beyond that."""
    seconds: int
    """Of processor time."""
    file: int
    """Bytes of the largest file it may write."""


class _Ruleset(ctypes.Structure):
    """landlock_ruleset_attr."""

    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    """landlock_path_beneath_attr."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def enter(*, folder: Path, reads: Iterable[Path], bounds: Bounds, parent: int) -> list[str]:
    """Gives up what is not needed, for good; returns the names of the protections that hold.

    Only `folder` can be written to, only it, `reads`, Python and the system's libraries can be read. The process dies with `parent`,
    which started it. Call it with one thread running: others keep their freedom.
    """
    held = ["limits"]
    _limit(bounds)
    if _leave_network():
        held.append("no_network")
    die_with_parent()  # after the namespaces: a change of credentials undoes it
    if os.getppid() != parent:
        os._exit(1)
    held.append("lifeline")
    if LIBC and LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no_new_privileges")
        held += _landlock(folder, reads)
    return held


def _limit(bounds: Bounds) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: bounds.seconds,
        resource.RLIMIT_FSIZE: bounds.file,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_DATA: bounds.memory,
    }
    if sys.platform == "linux":
        limits[resource.RLIMIT_AS] = bounds.memory + bounds.mapped
    for name, wanted in limits.items():
        allowed = resource.getrlimit(name)[1]
        bound = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
        resource.setrlimit(name, (bound, bound))


def _leave_network() -> bool:
    """A network of its own, in which there is nothing. The user is the same inside as outside."""
    if LIBC is None:
        return False
    user, group = os.geteuid(), os.getegid()
    if LIBC.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            Path("/proc/self", name).write_text(text)
        except OSError:  # files keep their owner all the same
            break
    return True


def _landlock(folder: Path, reads: Iterable[Path]) -> list[str]:
    """Files and folders that may be touched, all others may not; where the kernel knows Landlock."""
    assert LIBC is not None
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)
    if version < 1:
        return []
    handled = ACCESSES[max(known for known in ACCESSES if known <= version)]
    rules = _Ruleset(handled, NO_TCP if version >= 4 else 0, NO_OUTSIDE if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = LIBC.syscall(CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return []
    with ExitStack() as opened:
        opened.callback(os.close, ruleset)
        for path in {*map(Path, SYSTEM), *_python(), *reads}:
            _allow(ruleset, path, READ & handled)
        _allow(ruleset, Path("/dev/null"), READ_FILE | WRITE_FILE)
        _allow(ruleset, folder, handled)
        if LIBC.syscall(RESTRICT_SELF, ruleset, 0) != 0:
            return []
    return ["only_its_files"] + (["no_tcp"] if version >= 4 else [])


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this system
        return
    try:
        rule = _Beneath(access if path.is_dir() else access & OF_FILES, place)
        assert LIBC is not None
        if LIBC.syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0) != 0:
            raise OSError(f"Landlock does not take a rule for {path}")
    finally:
        os.close(place)


def _python() -> set[Path]:
    """Where Python, its packages and our own code are read from. Not the folder around our code: data may stand beside it."""
    found = {Path(path) for name, path in sysconfig.get_paths().items() if name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (
        found
        | {Path(sys.base_prefix, "lib"), Path(__file__).parents[1]}
        | {Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(":") if p}
    )
