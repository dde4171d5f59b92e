"""An additional process of a training; a build or `edgeproof follow` starts it."""

from __future__ import annotations

import os
import sys
import traceback

from bench.core.faults import EXIT_FAULT, ending
from bench.core.progress import SILENT


def main() -> int:
    """Read the data, report that it is ready, and run the stage together with the other processes.

    The main process keeps the result; the result of this process is discarded.
    """
    from exporter.pipeline.resolved_recipe import resolve_recipe
    from exporter.pipeline.train_step import run_stage
    from exporter.training.loop import Checkpoints
    from exporter.training.loop.hardware import READY, Job, joined

    # Standard output carries the answer to the main process. Prints of the user's code go to standard
    # error.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        job = Job.from_json(sys.stdin.buffer.readline())
        resolved = resolve_recipe(job.recipe, job.folder, SILENT)
        answer.write(f"{READY}\n")
        answer.flush()
        with joined(job) as engine:
            run_stage(resolved, job.stage, job.folders, engine, checkpoints=Checkpoints(job.unfinished))
    except Exception as error:  # noqa: BLE001 (the build reads the last line of any error)
        told = ending(error)
        if told.exit_code == EXIT_FAULT:
            traceback.print_exception(error)
        sys.stderr.write(f"{told.line()}\n")
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
