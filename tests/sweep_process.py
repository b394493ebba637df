"""Sweeps as processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning.sweep import plan as sweep_plan

ROOT = Path(__file__).parent.parent


def write_config(folder: Path, text: str, out: str = "study") -> Path:
    path = folder / f"{out}.toml"
    path.write_text(text.replace("{out}", str(folder / out)))
    return path


def start_sweep(config: Path, *flags: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a sweep as a process of its own, with the train script that is set here."""
    code = (
        "import pathlib, sys; from pruning.sweep import __main__ as sweep, plan as sweep_plan\n"
        "sweep.LOCK_SECONDS = 60.0\n"
        f"sweep_plan.TRAIN_SCRIPT = pathlib.Path({str(sweep_plan.TRAIN_SCRIPT)!r})\n"
        "sys.exit(sweep.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "--config", str(config), *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def await_that(happened: Callable[[], Any], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, end_of(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished_runs(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("*/results.json")}


def kill_all(process: "subprocess.Popen[str]", out: Path) -> None:
    """Kill a sweep, then its runs, whatever has started them."""
    process.kill()
    process.wait()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if f"--out={out}/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
