"""Where the first node of a step of srun is reached."""

import re
import shutil
import subprocess
from collections.abc import Mapping

NODES = "SLURM_STEP_NODELIST"


def first_node_address(environment: Mapping[str, str]) -> str | None:
    """Address of the node of task 0, as Slurm itself reaches it, which is not always its name.

    Args:
        environment: of this process; srun sets SLURM_STEP_NODELIST to names like ``n[9-10]``, in
            the order of its tasks.

    Returns:
        None outside of srun, and where scontrol is missing (in a container) or fails.
    """
    if NODES not in environment or shutil.which("scontrol") is None:
        return None
    names = _scontrol("hostnames", environment[NODES]).split()
    if not names:
        return None
    found = re.search(r"\bNodeAddr=(\S+)", _scontrol("node", names[0]))
    return found[1] if found else names[0]


def _scontrol(what: str, name: str) -> str:
    """Output of ``scontrol show``; empty where it fails."""
    command = ["scontrol", "show", what, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""
