"""One of the further processes of a training, as a build or `edgeproof follow` starts it."""

from __future__ import annotations

import os
import sys
import traceback

from bench.core.faults import EXIT_FAULT, ending
from bench.core.progress import SILENT


def main() -> int:
    """Read the data, say so, run the stage together with the others, and forget the result."""
    from exporter.pipeline.resolved_recipe import resolve_recipe
    from exporter.pipeline.train_step import run_stage
    from exporter.training.loop import Checkpoints
    from exporter.training.loop.hardware import READY, Job, joined

    # What a user's code prints must not be taken for an answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        job = Job.from_json(sys.stdin.buffer.readline())
        resolved = resolve_recipe(job.recipe, job.folder, SILENT)
        answer.write(f"{READY}\n")
        answer.flush()
        with joined(job) as engine:
            run_stage(resolved, job.stage, job.folders, engine, checkpoints=Checkpoints(job.unfinished))
    except Exception as error:  # noqa: BLE001 (whatever it is, its last line tells the build)
        told = ending(error)
        if told.exit_code == EXIT_FAULT:
            traceback.print_exception(error)
        sys.stderr.write(f"{told.line()}\n")
        return told.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
