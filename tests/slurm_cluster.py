"""A real Slurm of one node on loopback, of a test's own: munged, slurmctld and slurmd, ended with it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("munged", "slurmctld", "slurmd")
CORES, MEMORY_MIB = 2, 3800
# As without systemd and cgroups. A requeued job waits as long as a credential lives, two minutes by default.
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={first}
SlurmdPort={second}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=0
MinJobAge=3600
KillWait=5
ReturnToService=2
MailProg=/bin/true
GresTypes=gpu
NodeName=localhost NodeHostname=localhost NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
GPUS = "NodeName=localhost Name=gpu File=/dev/null\nNodeName=localhost Name=gpu File=/dev/zero\n"  # that nobody opens


def missing() -> list[str]:
    """Programs that are not installed; where one is root, they are installed first."""

    def absent() -> list[str]:
        return [name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None]

    if absent() and os.getuid() == 0 and shutil.which("apt-get"):
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)  # type: ignore[call-overload]
        install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *PACKAGES]
        subprocess.run(install, check=False, **quiet)  # type: ignore[call-overload]
    return absent()


@dataclass(frozen=True)
class Cluster:
    """Slurm at work.

    Attributes:
        folder: Of its state and logs.
    """

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """By which Slurm's commands find it; nothing of a Slurm around the tests."""
        outer = ("SLURM", "SBATCH_", "SQUEUE_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
        return {**clean, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """Run one of Slurm's commands; what it said."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def states(self, job: str) -> list[str]:
        """Of all tasks of a job."""
        lines = self.ask("squeue", "-h", "-r", "-t", "all", "-o", "%F|%K|%T").splitlines()
        rows = sorted(line.split("|") for line in lines)
        return [state for number, _, state in rows if number == job]

    def about(self, job: str) -> dict[str, str]:
        """What Slurm knows of a job or of one task."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "-o", "show", "job", job)))


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start Slurm, and end it and its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="bertnas-slurm-"))  # short, as sockets lie in it, and munged wants it open
    folder.chmod(0o755)
    for name in ("munge", "state", "spool", "log"):
        (folder / name).mkdir()
    munge = folder / "munge"
    munge.chmod(0o711)
    (munge / "munge.key").write_bytes(os.urandom(1024))
    (munge / "munge.key").chmod(0o400)
    first, second = _free_ports(2)
    conf = CONF.format(folder=folder, first=first, second=second, cores=CORES, memory=MEMORY_MIB)
    (folder / "slurm.conf").write_text(conf.lstrip())
    (folder / "gres.conf").write_text(GPUS)
    found = Cluster(folder)
    options = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munged = [f"--{name}={munge / value}" for name, value in options.items()]
    try:
        found.ask("munged", *munged, f"--seed-file={munge / 'seed'}")
        found.ask("slurmctld")
        found.ask("slurmd", "-N", "localhost")
        deadline = time.monotonic() + 60
        while found.ask("sinfo", "-h", "-o", "%T") != "idle":
            assert time.monotonic() < deadline, (folder / "log" / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield found
    finally:
        subprocess.run(["scancel", "--me"], env=found.environment, check=False)
        time.sleep(2)
        for path in (folder / "slurmd.pid", folder / "slurmctld.pid", munge / "munged.pid"):
            _end(path)
        shutil.rmtree(folder, ignore_errors=True)


def _end(pid_file: Path) -> None:
    try:
        number = int(pid_file.read_text())
        os.kill(number, signal.SIGTERM)
        for _ in range(100):
            os.kill(number, 0)
            time.sleep(0.1)
    except (OSError, ValueError):
        return  # it is gone
