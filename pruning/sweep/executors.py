"""What starts the processes of a sweep's runs: this machine, or a Ray cluster."""

import importlib
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.files import take_lock
from pruning.sweep.config import SweepConfig

POLL_SECONDS = 0.1


class Executor(Protocol):
    """What starts the processes of runs and says when they have ended."""

    def is_free(self) -> bool:
        """Return whether another run can be submitted now."""

    def submit(self, name: str, command: list[str], log: Path) -> None:
        """Start ``command``, now or as soon as there is a device for it."""

    def running(self) -> list[str]:
        """Return the names of the runs submitted and not yet returned by :meth:`wait`."""

    def wait(self) -> list[tuple[str, int]]:
        """Wait a moment; return name and exit status of runs that have ended."""

    def stop(self) -> None:
        """Ask the processes to save and exit; go on calling :meth:`wait` until they have."""


class LocalExecutor:
    """Processes on this machine, one at a time on each device."""

    def __init__(self, config: SweepConfig, environment: Mapping[str, str]) -> None:
        self._free = list(config.devices)
        self._environment = environment
        self._processes: dict[str, tuple[subprocess.Popen[bytes], str]] = {}

    def is_free(self) -> bool:
        """Return whether a device is free."""
        return bool(self._free)

    def submit(self, name: str, command: list[str], log: Path) -> None:
        """Start ``command`` on the first free device."""
        device = self._free.pop(0)
        process = start_process([*command, f"--device={device}"], log, self._environment)
        self._processes[name] = process, device

    def running(self) -> list[str]:
        """Return the names of the runs whose processes live."""
        return list(self._processes)

    def wait(self) -> list[tuple[str, int]]:
        """Return the runs that have ended; where none has, sleep a moment first."""
        if not (ended := self._collect()):
            time.sleep(POLL_SECONDS)
            ended = self._collect()
        return ended

    def stop(self) -> None:
        """Send SIGTERM to every process."""
        for process, _ in self._processes.values():
            process.terminate()

    def _collect(self) -> list[tuple[str, int]]:
        ended = []
        for name, (process, device) in list(self._processes.items()):
            if (status := process.poll()) is not None:
                del self._processes[name]
                self._free.append(device)
                ended.append((name, status))
        return ended


class RayExecutor:
    """Processes started by Ray tasks, one CPU or one GPU each; Ray queues and places them.

    The cluster is that of $RAY_ADDRESS, else one on this machine with a CPU for each device. Every
    node has to see the run folders, the corpus, this Python and this program at the same paths.

    Raises:
        ValueError: If Ray is not installed, or CPUs and GPUs are mixed.
    """

    def __init__(self, config: SweepConfig, environment: Mapping[str, str]) -> None:
        kinds = {device.split(":")[0] for device in config.devices}
        if len(kinds) > 1:
            raise ValueError(f"devices mix {' and '.join(sorted(kinds))}: with --ray give one kind")
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise ValueError('--ray needs ray: pip install -e ".[ray]"') from None
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": len(config.devices)}
        try:
            self._ray.init(log_to_driver=False, logging_level="warning", **local)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster at $RAY_ADDRESS ({error}): start one") from None
        self._device = kinds.pop()
        self._note = config.out / ".stop"
        self._note.unlink(missing_ok=True)
        self._environment = environment
        resources = {"num_gpus": 1} if self._device == "cuda" else {"num_cpus": 1}
        self._task = self._ray.remote(max_retries=0, **resources)(run_process)
        self._names: dict[Any, str] = {}

    def is_free(self) -> bool:
        """Return True: Ray keeps the queue."""
        return True

    def submit(self, name: str, command: list[str], log: Path) -> None:
        """Hand ``command`` to Ray."""
        full = [*command, f"--device={self._device}"]
        paths = (log.resolve(), self._note.resolve(), Path.cwd())
        self._names[self._task.remote(full, self._environment, *paths)] = name

    def running(self) -> list[str]:
        """Return the names of the tasks that have not ended, queued ones among them."""
        return list(self._names.values())

    def wait(self) -> list[tuple[str, int]]:
        """Return the tasks that have ended within a moment."""
        done, _ = self._ray.wait(list(self._names), timeout=POLL_SECONDS)
        ended = []
        for task in done:
            try:
                status = self._ray.get(task)
            except self._ray.exceptions.RayError:  # such as the loss of its machine
                status = 1
            ended.append((self._names.pop(task), status))
        return ended

    def stop(self) -> None:
        """Leave a note that the tasks look for: Ray cannot interrupt one that waits."""
        self._note.touch()


def start_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path | None = None
) -> "subprocess.Popen[bytes]":
    """Start ``command`` with its output appended to ``log``, which it keeps locked while it lives.

    It gets a session of its own, so that a terminal's Ctrl-C reaches it once, from the sweep.
    """
    with log.open("ab", buffering=0) as file:
        take_lock(file, f"another process writes to {log}")
        file.write(f"$ {shlex.join(command)}\n".encode())
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | environment | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def run_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, note: Path, folder: Path
) -> int:
    """Run ``command`` as a Ray task; once there is a ``note``, let it save and exit."""
    if note.exists():
        return 130
    process = start_process(command, log, environment, folder)
    stopped = False
    while process.poll() is None:
        if note.exists() and not stopped:
            process.terminate()
            stopped = True
        time.sleep(POLL_SECONDS)
    return process.returncode
