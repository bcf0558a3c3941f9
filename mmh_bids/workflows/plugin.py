"""Nipype's MultiProc, but a killed worker is an error with a remedy instead of a hang."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from traceback import format_exception
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin

from mmh_bids.errors import ImageError
from mmh_bids.machine import end_with_parent

WORKER_KILLED = (
    "a worker process was killed, most likely for lack of memory: give the job more memory, or lower --nprocs or --mem"
)


class PatientMultiProc(MultiProcPlugin):
    """MultiProc that survives the death of a worker.

    When the system kills a worker, all jobs of the pool break. MultiProc's callback raises then, and it waits forever
    for results that never come. Here those jobs fail with a reason, and the next ones get a fresh pool.
    """

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: dict[str, Any] | None = None):
        super().__init__(plugin_args=plugin_args)
        self.pool = self._new_pool()
        #: Process ids of all workers there were: what killed ones left behind carries their number.
        self.worker_pids: set[int] = set()

    def _async_callback(self, args: Future) -> None:
        if args.cancelled() or args.exception() is not None:
            return  # `_get_result` reports it
        super()._async_callback(args)

    def _get_result(self, taskid: int) -> Any:
        future = self._task_obj.get(taskid)
        if future is not None and future.done() and future.exception() is not None:
            text = f"a worker process failed: {future.exception()!r}"
            if isinstance(future.exception(), BrokenProcessPool):
                self._renew_pool()
                text = WORKER_KILLED
            # what a worker returns when its node raised: Nipype then drops what depends on the node, and goes on
            error = ImageError(text)
            return {"result": None, "traceback": format_exception(type(error), error, None), "taskid": taskid}
        return super()._get_result(taskid)

    def _sort_jobs(self, jobids: Sequence[int], scheduler: str = "tsort") -> list[int]:
        """Finish an image before the next one is begun: results come early, working files do not pile up.

        Nipype's order would take every image one step further before the next step. `plugin_args["order"]` is the
        list of the images' workflow names.
        """
        order = {name: rank for rank, name in enumerate(self.plugin_args.get("order", ()))}

        def rank(jobid: int) -> tuple[int, int]:
            parts = self.procs[jobid].fullname.split(".")
            return min((order[part] for part in parts if part in order), default=-1), jobid

        return sorted((int(jobid) for jobid in jobids), key=rank)

    def _submit_job(self, node: Any, updatehash: bool = False) -> Any:
        try:
            taskid = super()._submit_job(node, updatehash)
        except BrokenProcessPool:  # a worker has died since the results were looked at
            self._renew_pool()
            taskid = super()._submit_job(node, updatehash)
        self.worker_pids.update(child.pid for child in multiprocessing.active_children() if child.pid)
        return taskid

    def _renew_pool(self) -> None:
        """Replace the pool once; later jobs of the broken one find the new pool alive."""
        if getattr(self.pool, "_broken", False):
            self.pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(self.plugin_args.get("mp_context"))
        return ProcessPoolExecutor(self.processors, context, _start_worker, (self._cwd,))


def _start_worker(folder: str) -> None:
    os.chdir(folder)
    end_with_parent()
