"""EleutherAI's harness as an audit uses it: tasks are loaded once, and asked of one model after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from llmc.audit_tasks import AuditTask
from llmc.errors import InputError, MachineError
from llmc.registry import unknown

_EXAMPLES_SEED = 1234  # the harness's own


def load_tasks(tasks: Sequence[AuditTask], include: Path | None) -> list[tuple[AuditTask, dict[str, Any]]]:
    """Return each task with what the harness makes of it: one task of its own, or several under one name.

    Args:
        include: A folder with more tasks of the harness.

    Raises:
        InputError: A name that it does not know, a task that it cannot make sense of.
        MachineError: A task of the harness whose data cannot be loaded.
    """
    if include is not None and not include.is_dir():
        raise InputError(f"--include: {include} is no folder")
    manager = _manager([task.asked for task in tasks if isinstance(task.asked, str)], include)
    found = []
    for task in tasks:
        if isinstance(task.asked, str) and task.asked not in manager.all_tasks:
            more = "; a file of one ends in .yaml"
            raise InputError(f"--tasks: {unknown('task or suite', task.asked, manager.all_tasks)[:300]}{more}")
        try:
            with _silent():
                found.append((task, manager.load([task.asked])))
        except Exception as error:  # of templates, of the data set, of the network
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            kind = MachineError if isinstance(task.asked, str) or "dataset_path" in task.asked else InputError
            raise kind(f"{task.name}: the harness cannot load it ({reason})") from error
    return found


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    """Looks through the thousands of files of the harness only for names that are not in the folder."""
    with _silent():
        manager = TaskManager(include_path=include, include_defaults=False)
        if not set(names) <= set(manager.all_tasks):
            manager = TaskManager(include_path=include, include_defaults=True)
    return manager


def ask(
    lm: LM, task: AuditTask, loaded: dict[str, Any], fewshot: int | None, limit: int | None, chat: bool
) -> dict[str, tuple[list[dict[str, Any]], dict[str, bool | None]]]:
    """Return what the harness logs of every task under this name, and whether more of its metrics is better.

    Args:
        fewshot: Examples in front of each question; None: as the task says.
        limit: Samples at most; tasks whose documents llmc has read are limited already.
    """
    for each in loaded["tasks"].values():
        _set_examples(each, fewshot)
    own = isinstance(task.asked, dict) and "custom_dataset" in task.asked
    with _silent():
        results: Any = evaluate(
            lm=lm,
            task_dict=loaded,
            limit=None if own else limit,
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    return {name: (each, results["higher_is_better"].get(name, {})) for name, each in results["samples"].items()}


def _set_examples(task: Any, wanted: int | None) -> None:
    """As the harness's own command line does: a task that says 0 means it. Both models get the same examples."""
    own = task.get_config("num_fewshot")
    task.set_config(key="num_fewshot", value=own or 0 if own == 0 or wanted is None else wanted)
    task.set_fewshot_seed(seed=_EXAMPLES_SEED)


@contextmanager
def _silent() -> Iterator[None]:
    """The harness draws bars and warns about options that are meant so, and has no switch for it."""
    log, drawn = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = drawn
        log.setLevel(level)
