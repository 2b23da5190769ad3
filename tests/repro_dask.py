"""A Dask scheduler and its workers as processes of this machine, to be killed; for the tests of the engine."""

import json
import subprocess
import sys

from repro_stub import wait_for


class Cluster:
    """Two workers of one thread each. What was killed is started anew by `up` (all of it) or `tend` (workers of a
    living scheduler)."""

    def __init__(self, folder):
        self.folder, self.scheduler, self.workers, self.begun = folder, None, [], 0

    def up(self):
        """Its address, once there is a living scheduler."""
        if self.scheduler is None or self.scheduler.poll() is not None:
            self.down()
            self.scheduler = self._begin("scheduler", "--port", "0")
            wait_for(lambda: self.file.exists() and self.file.read_text().rstrip().endswith("}"))
        self.tend()
        return json.loads(self.file.read_text())["address"]

    def tend(self):
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while self.scheduler.poll() is None and len(self.workers) < 2:
            self.workers.append(
                self._begin("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder))
            )

    def down(self):
        for process in [*filter(None, [self.scheduler]), *self.workers]:
            process.kill()
            process.wait()
        self.workers = []

    def _begin(self, kind, *options):
        if kind == "scheduler":
            self.file = self.folder / f"scheduler{self.begun}.json"
        self.begun += 1
        with open(self.folder / f"{kind}{self.begun}.log", "wb") as log:
            command = [
                sys.executable,
                "-m",
                f"distributed.cli.dask_{kind}",
                "--scheduler-file",
                str(self.file),
                "--host",
                "127.0.0.1",
                "--dashboard-address",
                "127.0.0.1:0",
                *options,
            ]
            return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=log)
