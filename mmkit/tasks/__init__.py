"""A task is data, an objective and metrics."""

from mmkit.errors import unknown
from mmkit.tasks.answering import Answering
from mmkit.tasks.base import Task
from mmkit.tasks.captioning import Captioning
from mmkit.tasks.diagnosis import Diagnosis, resplit, reworded
from mmkit.tasks.retrieval import Retrieval

TASKS = {"answering": Answering, "captioning": Captioning, "diagnosis": Diagnosis, "retrieval": Retrieval}


def task(name: str, dataset, **options):
    """A task by name. Raises MmkitError for a name that does not exist."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name](dataset, **options)


__all__ = ["Answering", "Captioning", "Diagnosis", "Retrieval", "Task", "resplit", "reworded", "task"]
