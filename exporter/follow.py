"""One of the further processes of a training, as a build or `edgeproof follow` starts it."""

from __future__ import annotations

import os
import sys

from bench.errors import EdgeproofError
from bench.progress import SILENT


def main() -> int:
    """Read the data, say so, run the stage together with the others, and forget the result."""
    from exporter.steps import run_stage
    from exporter.training import Checkpoints
    from exporter.training.hardware import READY, Job, joined
    from exporter.workshop import open_workshop

    job = Job.from_json(sys.stdin.readline())
    # What a user's code prints must not be taken for an answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        shop = open_workshop(job.recipe, job.folder, SILENT)
        answer.write(f"{READY}\n")
        answer.flush()
        with joined(job) as engine:
            run_stage(shop, job.stage, job.folders, engine, Checkpoints(job.unfinished))
    except EdgeproofError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
