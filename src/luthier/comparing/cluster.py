"""Runs as tasks of a Ray cluster, whose nodes see the same folders (an optional extra: pip install luthier[ray]). Moritz et al. 2018,
arXiv:1712.05889. What a run was is read from its folder, so the table is the same.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.comparing.turns import Ended, Job, Turns
from luthier.training.stop import Stop

WAIT_S = 0.5


def check() -> None:
    """ValueError where ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ValueError("ray: true needs the package ray; pip install 'luthier[ray]', or set workers") from None


@dataclass
class Cluster:
    """As Turns, on the cluster that ray finds, or on this machine."""

    stop: Stop
    ended: Ended

    def go(self, jobs: Sequence[Job]) -> None:
        """Does all of them, or until somebody asks to stop; a task that is stopped goes on from its last checkpoint another time."""
        import ray

        mine = not ray.is_initialized()
        if mine:
            ray.init(log_to_driver=False, include_dashboard=False)
        try:
            task = ray.remote(max_retries=0)(alone)
            here = os.getcwd()
            running = {task.remote(replace(job, run=replace(job.run, output=str(job.folder.absolute()))), here): job.name for job in jobs}
            while running and not self.stop.asked:
                done, _ = ray.wait(list(running), timeout=WAIT_S)
                for reference in done:
                    name = running.pop(reference)
                    try:
                        self.ended(name, ray.get(reference))
                    except ray.exceptions.RayError as error:
                        self.ended(name, f"the task that ran it died: {error}".partition("\n")[0])
            for reference in running:
                ray.cancel(reference, force=True)
        finally:
            if mine:
                ray.shutdown()


def alone(job: Job, folder: str) -> str | None:
    """One run, in a process of the cluster; None, or why it failed."""
    os.chdir(folder if Path(folder).is_dir() else ".")
    errors: list[str | None] = []
    Turns(Stop(), 1, lambda name, line: None, lambda name, error: errors.append(error)).go([job])
    return errors[0]
