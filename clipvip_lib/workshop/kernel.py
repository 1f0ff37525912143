"""Notebook kernels as copies of the warm process, through jupyter_client's interface for kernels that run elsewhere."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from clipvip_lib.workshop import warm

NAME = "clipvip-warm"
INLINE = "module://matplotlib_inline.backend_inline"


def use_copies() -> None:
    """Make kernels that this process starts copies of the warm process, if this process is one itself."""
    if warm.ours is not None:
        factory = KernelProvisionerFactory.instance()
        factory.provisioners[NAME] = EntryPoint(NAME, f"{__name__}:Provisioner", factory.GROUP_NAME)
        factory.default_provisioner_name = NAME


class Provisioner(LocalProvisioner):
    """Starts a copy where its base class starts a command; the rest is the same."""

    async def launch_kernel(self, cmd, **options):
        arguments = cmd[cmd.index("-f") :]  # behind "python -m ipykernel_launcher"
        folder = options.get("cwd") or Path.cwd()
        self.process = warm.ours.start(
            f"{__name__}:run", [arguments], environment=options["env"], folder=folder
        )
        self.cwd = folder
        return self.connection_info


def run(arguments: list[str]) -> None:
    """Be a kernel, like ``python -m ipykernel_launcher`` with these arguments."""
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = ["ipykernel_launcher", *arguments]
    # ipykernel and matplotlib read these variables at import, and that happened before this copy was made.
    os.environ.setdefault("MPLBACKEND", INLINE)
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].rcParams["backend"] = os.environ["MPLBACKEND"]
    IPKernelApp.launch_instance(arguments, parent_handle=os.getppid())
