"""How many processor cores others leave free: llama.cpp's threads spin while they wait, so more of them than that starve a training."""

import os
import time

import psutil


class Cores:
    def __init__(self) -> None:
        self.count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.looked_at, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()
        self.free = max(1, self.count // 2)

    def look(self) -> int:
        """The cores that were free since it was last looked, this process and its servers not counted; at least one."""
        now, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        if (passed := now - self.looked_at) >= 1:
            others = max(0.0, busy - self.busy - max(0.0, own - self.own)) / passed
            self.free = max(1, round(self.count - others))
            self.looked_at, self.busy, self.own = now, busy, own
        return self.free


def busy_seconds() -> float:
    """Of all cores together, since the machine began."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def own_seconds() -> float:
    """Of this process, its servers, and those that have ended: their computing was no other's."""
    me = psutil.Process()
    ended = me.cpu_times()
    total = float(ended.children_user + ended.children_system)
    for process in (me, *me.children()):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
