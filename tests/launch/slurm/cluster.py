"""A Slurm of two nodes on this machine: munge, a controller and two node daemons in a directory, without systemd.

The nodes have four CPUs each and fake GPUs: device files that Slurm counts and torch does not know. A job in the
partition `urgent` preempts one in `main`, which gets SIGTERM and GRACE seconds.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DAEMONS = ("munged", "slurmctld", "slurmd")
GRACE = 40
NODES = ("node1", "node2")
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MinJobAge=600
MailProg=/bin/true
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=1440 State=UP PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=node1,node2 MaxTime=1440 State=UP PriorityTier=9 PreemptMode=OFF
"""
GRES = "NodeName=node[1-2] Name=gpu Count=2 File=/dev/tty[0-1]\n"


def lacking() -> str | None:
    """Why Slurm cannot run here, or None."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=path) is None]
    if missing:
        return f"no Slurm: {', '.join(missing)} not installed"
    return None if os.geteuid() == 0 else "no Slurm: its daemons are started by root"


class Cluster:
    """The daemons, and queries for tests; with `environment`, Slurm's commands use this cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        self._write()
        munge = folder / "munge"
        options = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "munged.pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        self.call("munged", "--force", *(f"--{name}={munge / file}" for name, file in options.items()))
        self.call("slurmctld", "-c")
        for node in NODES:
            self.call("slurmd", "-N", node)
        self.wait(lambda: self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split() == ["idle", "idle"], 30)

    def _write(self) -> None:
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge/key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONFIG.format(**names, ports=_free_ports(3), grace=GRACE))
        (self.folder / "gres.conf").write_text(GRES)

    def call(self, *command: str, **environment: str) -> str:
        """Run a command, which must succeed; returns what it printed."""
        done = subprocess.run(
            command, env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait(self, check: Callable[[], bool], seconds: float) -> None:
        """Wait until a check is true, which must be soon."""
        deadline = time.monotonic() + seconds
        while not check():
            assert time.monotonic() < deadline, self.call("squeue", "--states=all", "--format=%i %T %r %j %M")
            time.sleep(0.1)

    def job(self, job: str) -> dict[str, str]:
        """The controller's record of a job, or of one index of an array (JOB_INDEX)."""
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, job: str) -> str:
        return self.job(job)["JobState"]

    def until_ended(self, *jobs: str, seconds: float = 150) -> list[str]:
        """Wait until jobs have ended; returns their states."""
        self.wait(lambda: all(self.state(job) in ENDED for job in jobs), seconds)
        return [self.state(job) for job in jobs]

    def stop(self) -> None:
        """End all jobs and daemons."""
        self.call("scancel", "--user", getpass.getuser())
        self.wait(lambda: not self.call("squeue", "-h", "-t", "all", "-o", "%A %T").count("COMPLETING"), 20)
        pids = [int(file.read_text()) for file in (*self.folder.glob("*.pid"), self.folder / "munge/munged.pid")]
        for pid in pids:
            os.kill(pid, 15)
        self.wait(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), 20)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [int(free.getsockname()[1]) for free in sockets]
    for free in sockets:
        free.close()
    return ports
