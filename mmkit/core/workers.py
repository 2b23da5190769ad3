"""Work shared out over threads of one core each: parallel over tiles, not inside them.

A parallel region inside a matrix product waits for its slowest thread. Where another process takes a core now and then,
hundreds of such regions wait hundreds of times. Here each thread computes whole tiles and takes the next one when it is
done, so that a thread that lost its core holds up one tile, and threads meet once, at the end.
"""

import os
import threading
from _thread import start_new_thread
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager, nullcontext
from queue import Empty, SimpleQueue

import torch

# A new thread often begins on the core of the one that made it, and is moved only some milliseconds later.
PATIENCE = 2.0  # seconds for which a helping thread waits for its next job before it ends
_idle: list[SimpleQueue] = []  # inboxes of the helping threads that wait
_here = threading.local()  # .threads: how many this thread's operations used outside of `one_thread`


def slices(count: int, size: int) -> list[slice]:
    """0 to count in slices of this size; the last may be shorter."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def tiles(rows: int, columns: int, side: int) -> list[tuple[slice, slice]]:
    """The tiles of a (rows, columns) matrix, along its diagonals: neighbours in the list share no row and no column."""
    across, down = slices(columns, side), slices(rows, side)
    grid = []
    for shift in range(len(across)):
        grid += [(i, across[(number + shift) % len(across)]) for number, i in enumerate(down)]
    return grid


def strips(tile: tuple[slice, slice]) -> tuple[Hashable, Hashable]:
    """What a tile adds to: the sums of its rows and those of its columns."""
    return ("rows", tile[0].start), ("columns", tile[1].start)


def shared(device: torch.device, work: Callable, tasks: Sequence, *, adds_to=lambda task: (), scratch=tuple):
    """Calls work(*scratch(), *task) for each task, on as many threads as PyTorch has here; returns when all are done.

    Tasks that add to the same thing, which adds_to(task) names, run one after the other in their order in `tasks`: the
    digits do not depend on the number of threads. What scratch() makes is made once a thread. Number of threads,
    inference and gradient mode belong to each thread, so each helper sets its own. The first error is raised. On a GPU
    the caller, whose stream it is, works alone. So it does with a single task, which is
    parallel inside unless this is called within `one_thread`.
    """
    queue, inference, ended = _Queue(tasks, adds_to), torch.is_inference_mode_enabled(), SimpleQueue()

    def job() -> None:
        with torch.inference_mode(inference):
            queue.work_off(work, scratch)

    with one_thread() if len(tasks) > 1 else nullcontext():
        helpers = 0
        try:
            for _ in range(min(threads(device), len(tasks)) - 1):
                _helper().put((job, ended))
                helpers += 1
            queue.work_off(work, scratch)
        finally:
            queue.stop()
            for _ in range(helpers):
                ended.get()
    if queue.error:
        raise queue.error


def _helper() -> SimpleQueue:
    """The inbox of a helping thread that waits, or of a new one."""
    try:
        return _idle.pop()
    except IndexError:
        inbox = SimpleQueue()
        start_new_thread(_help, (inbox,))
        return inbox


def _help(inbox: SimpleQueue) -> None:
    """A helping thread: does what comes into its inbox, and ends when nothing comes for a while."""
    torch.get_num_threads()  # a thread's first question sets its number anew: it is asked before the number is set
    torch.set_num_threads(1)
    while True:
        try:
            job, ended = inbox.get(timeout=PATIENCE)
        except Empty:
            try:
                _idle.remove(inbox)
                return
            except ValueError:  # somebody has just taken it: a job is on its way
                job, ended = inbox.get()
        if job is None:
            ended.put(None)
            return
        job()
        job = None  # what it holds is not held while waiting
        _idle.append(inbox)
        ended.put(None)


def _dismiss() -> None:
    """Ends the waiting helpers. Before a fork, whose child would have their inboxes but not the threads."""
    ended, dismissed = SimpleQueue(), 0
    while _idle:
        _idle.pop().put((None, ended))
        dismissed += 1
    for _ in range(dismissed):
        ended.get()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_dismiss, after_in_child=_idle.clear)


@contextmanager
def one_thread():
    """Inside, PyTorch's operations in this thread use no other. Only `shared` uses as many as there are outside."""
    if hasattr(_here, "threads"):
        yield
        return
    _here.threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_here.threads)
        del _here.threads


def threads(device: torch.device) -> int:
    """How many threads `shared` has."""
    return getattr(_here, "threads", 0) or torch.get_num_threads() if device.type == "cpu" else 1


class _Queue:
    """Tasks that wait, and what the running ones add to."""

    def __init__(self, tasks: Sequence, adds_to: Callable):
        self.tasks, self.adds_to = list(tasks), adds_to
        self.busy, self.error, self.changed = set(), None, threading.Condition()

    def work_off(self, work: Callable, scratch: Callable) -> None:
        try:
            with torch.no_grad():
                given = scratch()
                while (task := self.next()) is not None:
                    work(*given, *task)
                    self.finished(task)
        except BaseException as error:
            self.stop(error)

    def next(self) -> tuple | None:
        """The first task that adds to nothing which a running or an earlier task adds to; None when all are taken."""
        with self.changed:
            while self.tasks:
                blocked = set(self.busy)
                for place, task in enumerate(self.tasks):
                    if blocked.isdisjoint(self.adds_to(task)):
                        self.busy.update(self.adds_to(task))
                        return self.tasks.pop(place)
                    blocked.update(self.adds_to(task))
                self.changed.wait()
        return None

    def finished(self, task: tuple) -> None:
        with self.changed:
            self.busy.difference_update(self.adds_to(task))
            self.changed.notify_all()

    def stop(self, error: BaseException | None = None) -> None:
        """No further task is begun."""
        with self.changed:
            self.error = self.error or error
            self.tasks.clear()
            self.changed.notify_all()
