"""A real Slurm of several nodes on one host: munged, slurmctld and one slurmd a node.

    python -m tests.slurm.cluster      starts one and waits for Ctrl-C

Needs root and Debian's packages slurm-wlm and munge (``make test-slurm`` installs them). Everything
lies in one temporary folder, which is gone at the end. Each node has GPUs that are device files of
no device, so that Slurm counts and hands them out; an address of its own; and a name that does not
resolve, as on clusters without name service.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
# Final states of a job (squeue's manual, "JOB STATE CODES").
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}


class ClusterError(Exception):
    """The cluster cannot start, or a command of it failed."""


@dataclass
class Cluster:
    """Slurm's daemons and what is asked of them.

    Args:
        folder: of configuration, logs and state.
        nodes: names of the nodes.
        gpus: device files of each node.
    """

    folder: Path
    nodes: tuple[str, ...]
    gpus: int
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which Slurm's commands find this cluster; none of the caller's own job."""
        own = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
        return own | {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Output of one of Slurm's commands.

        Raises:
            ClusterError: where it fails, with what it said.
        """
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}")
        return done.stdout

    def submit(
        self,
        script: Path | str,
        *arguments: str,
        options: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        folder: Path,
    ) -> str:
        """Submits a batch script from ``folder``; returns the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script), *arguments],
            env=self.environment | dict(variables or {}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"sbatch: {done.stderr}\n{self.logs()}")
        return done.stdout.strip().split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job (one task of an array: NUMBER_TASK)."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, states: set[str] = ENDED, timeout: float = 240) -> dict[str, str]:
        """Waits for a job to be in one of ``states``.

        Raises:
            ClusterError: where it is not in time, with the daemons' logs.
        """
        end = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > end:
                raise ClusterError(f"job {number} is {job['JobState']}: {job}\n{self.logs()}")
            time.sleep(0.5)
        return job

    def start_at_once(self, number: str) -> None:
        """Starts a job that was queued again: Slurm would let two minutes pass first."""
        self.wait(number, {"PENDING"}, timeout=120)
        # That is for slurmd: it tells the time in seconds, and refuses a job whose credential is of
        # the second in which it killed that job, or of one before it.
        time.sleep(1.1)
        self.run("scontrol", "update", f"JobId={number}", "StartTime=now")

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)

    def address(self, node: str) -> str:
        """Where Slurm reaches a node: addresses of the loopback network, all of this host."""
        return f"127.0.0.{2 + self.nodes.index(node)}"

    def kill_processes(self, node: str) -> None:
        """Kills everything that jobs run on a node, from outside."""
        for process in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self, node: str, name: str = "") -> list[int]:
        """What jobs run on a node, as far as the command line has ``name`` in it."""
        mine = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.folder / 'slurm.conf'}"}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                variables = (folder / "environ").read_text(errors="replace").split("\0")
                if mine <= set(variables) and name in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
        return found

    def kill_daemon(self, node: str) -> None:
        """Kills a node's slurmd, and leaves its jobs alone."""
        self._stop(node, signal.SIGKILL)

    def start_daemon(self, node: str) -> None:
        """Starts a node's slurmd again, and waits until Slurm has heard of the new one."""
        before = self._daemon_started(node)
        time.sleep(1.1)  # Slurm tells the time in seconds
        self._start(node, "slurmd", "-D", "-N", node)
        self._await_nodes((node,))
        end = time.monotonic() + 60
        while self._daemon_started(node) == before:
            if time.monotonic() > end:
                raise ClusterError(f"node {node} is still the one of {before}\n{self.logs()}")
            time.sleep(0.3)

    def _daemon_started(self, node: str) -> str:
        words = self.run("scontrol", "--oneliner", "show", "node", node).split()
        return dict(word.split("=", 1) for word in words if "=" in word)["SlurmdStartTime"]

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.out.log").open("ab")
        self.daemons[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def _stop(self, name: str, number: int) -> None:
        daemon = self.daemons.pop(name)
        if daemon.poll() is None:
            daemon.send_signal(number)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _await_nodes(self, names: Sequence[str], timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while True:
            text = self.run("sinfo", "-h", "-N", "-n", ",".join(names), "-o", "%T", check=False)
            states = text.split()
            if len(states) == len(names) and set(states) <= {"idle", "mixed", "allocated"}:
                return
            if time.monotonic() > end:
                raise ClusterError(f"nodes {names} are {states}\n{self.logs()}")
            time.sleep(0.3)


@contextlib.contextmanager
def running(
    nodes: Sequence[str] = ("n9", "n10"), gpus: int = 2, cpus: int = 4
) -> Iterator[Cluster]:
    """A cluster with these nodes, as long as the context lasts.

    Raises:
        ClusterError: without root, or where Slurm is not installed.
    """
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        raise ClusterError(
            f"needs root and Slurm; not found: {', '.join(missing) or '-'}. make test-slurm "
            "installs slurm-wlm and munge where apt-get is there"
        )
    with tempfile.TemporaryDirectory(prefix="lvsa-slurm-") as name:
        cluster = Cluster(Path(name), tuple(nodes), gpus)
        cluster.folder.chmod(0o755)
        _configure(cluster, cpus)
        try:
            socket_path = str(cluster.folder / "munge.socket")
            munged = ("munged", "--foreground", "--force", "--key-file", f"{name}/munge.key")
            own = ("--socket", socket_path, "--log-file", f"{name}/munge.log")
            files = ("--pid-file", f"{name}/munge.pid", "--seed-file", f"{name}/munge.seed")
            cluster._start("munged", *munged, *own, *files)
            _await_file(Path(socket_path), cluster)
            cluster._start("slurmctld", "slurmctld", "-D", "-c")
            for node in nodes:
                cluster._start(node, "slurmd", "-D", "-c", "-N", node)
            cluster._await_nodes(nodes)
            yield cluster
        finally:
            cluster.run("scancel", "--user=root", "--signal=KILL", check=False)
            _await_no_steps(cluster)
            for daemon in [*nodes, "slurmctld", "munged"]:
                if daemon in cluster.daemons:
                    cluster._stop(daemon, signal.SIGTERM)


def _configure(cluster: Cluster, cpus: int) -> None:
    folder, gpus = cluster.folder, cluster.gpus
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    for number in range(gpus):
        # The numbers of /dev/null: Slurm wants a device file for each GPU, and never opens it.
        os.mknod(folder / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
    ports = free_ports(1 + len(cluster.nodes))
    lines = [
        "ClusterName=lvsa-test",
        f"SlurmctldHost={socket.gethostname()}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        "CredType=cred/munge",
        f"SlurmctldPort={ports[0]}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "MpiDefault=none",
        "ReturnToService=2",
        "SlurmdTimeout=15",
        "KillWait=5",
        "MinJobAge=3600",
        "InactiveLimit=0",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2,requeue_delay=0",
        "JobRequeue=1",
        "GresTypes=gpu",
        *[
            f"NodeName={node} NodeHostname={socket.gethostname()} "
            f"NodeAddr={cluster.address(node)} Port={port} "
            f"CPUs={cpus} RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN"
            for node, port in zip(cluster.nodes, ports[1:], strict=True)
        ],
        f"PartitionName=main Nodes={','.join(cluster.nodes)} Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "gres.conf").write_text(
        "AutoDetect=off\n"
        + "".join(
            f"NodeName={node} Name=gpu Count={gpus} File={folder}/gpu[0-{gpus - 1}]\n"
            for node in cluster.nodes
        )
    )


def _await_file(path: Path, cluster: Cluster, timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > end:
            raise ClusterError(f"{path.name} does not come\n{cluster.logs()}")
        time.sleep(0.1)


def _await_no_steps(cluster: Cluster, timeout: float = 20) -> None:
    end = time.monotonic() + timeout
    while cluster.run("squeue", "-h", check=False).strip() and time.monotonic() < end:
        time.sleep(0.3)


if __name__ == "__main__":
    with running() as started, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={started.folder / 'slurm.conf'}", flush=True)  # noqa: T201
        signal.pause()
