"""The GPU: what JAX and its driver say of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from triptych.errors import StartError

_ASKED = "name,driver_version,memory.total,memory.used,utilization.gpu,power.limit,clocks.max.sm"
_FIRST_DEVICE = "import jax; device = jax.devices()[0]; print(device.platform, device.device_kind, sep=chr(10))"


def environment(*, on_cpu: bool) -> dict[str, str]:
    """For a process that shares the GPU with others, or sees none."""
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"}
    as_the_driver = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # so that the first GPU is nvidia-smi's first
    return {**os.environ, **shared, **as_the_driver} | ({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})


def find_device(*, tiny: bool) -> str:
    """The name of JAX's device; asked in a process of its own, because who asks holds it.

    Raises:
        StartError: JAX is not installed, or has no GPU where one is needed.
    """
    command = [sys.executable, "-c", _FIRST_DEVICE]
    answer = subprocess.run(command, env=environment(on_cpu=tiny), capture_output=True, text=True, check=False)
    if answer.returncode:
        raise StartError(f"JAX does not start here: {(answer.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    platform, name = answer.stdout.splitlines()[-2:]
    if platform == "cpu" and not tiny:
        raise StartError(
            "JAX sees no GPU here: run it where there is one, with the extra jax-gpu, or give --tiny to try it on the CPU"
        )
    return name


def ask_driver() -> Mapping[str, str]:
    """What nvidia-smi says of the first GPU; nothing where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    first = (answer.stdout.splitlines() or [""])[0]
    return dict(zip(_ASKED.split(","), first.split(", "), strict=True)) if answer.returncode == 0 and first else {}
