"""A throw-away SLURM cluster of simulated nodes on this host, for tests.

    scripts/mini_slurm.py install                        # slurm-wlm and munge from the distribution
    scripts/mini_slurm.py run --nodes 2 -- bash          # a cluster for as long as the command runs

Every node is a network, host-name, process and mount namespace of its own: its own address and ports, made-up GPUs.
Needs root and Debian's or Ubuntu's packages; no systemd, no cgroups, nothing written to /etc. Every daemon dies with
the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CONF = """\
ClusterName=mini
SlurmctldHost={host}({subnet}.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits: 120 s by default, 5 at the least (less silently means 120)
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=100000,sched_interval=2,batch_sched_delay=0,nohold_on_prolog_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait={kill_wait}
MessageTimeout=10
CompleteWait=0
Waittime=0
MinJobAge=36000
DefMemPerCPU=100
JobSubmitPlugins=lua
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=accounted Nodes=ALL MaxTime=INFINITE DefaultTime=10
"""
# what a cluster with accounting answers to a job without an account, here in one partition
SUBMIT_LUA = """\
function slurm_job_submit(job, partitions, uid)
   if job.partition == "accounted" and job.account == nil then return 2045 end
   return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""
NODE = """\
set -e
read -r _ <"$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
# a job with a list of --export runs the user's login profile, and waits for whatever that does on this host
for file in ~/.bash_profile ~/.bash_login ~/.profile; do [ ! -f "$file" ] || mount --bind /dev/null "$file"; done
hostname "$3"; ip link set lo up
ip link set "$4" name eth0; ip addr add "$5/24" dev eth0; ip link set eth0 up
slurmd -D -s -N "$3" -f "$2/slurm.conf" & wait $!
"""
GOING = "PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED|REQUEUED|SIGNALING|STAGE_OUT"  # states before the end


class Unavailable(Exception):
    """Why there can be no cluster here."""


def missing() -> str | None:
    """Why no cluster can be brought up on this machine; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a mini SLURM cluster needs root on Linux, for network namespaces"
    programs = [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare") if not shutil.which(name)]
    if programs:
        return f"not installed: {', '.join(programs)}; `make slurm` installs slurm-wlm where apt-get can"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return "this machine allows no namespaces (a container without CAP_SYS_ADMIN?)" if probe.returncode else None


def install() -> None:
    """slurm-wlm, munge and iproute2 by apt-get, without starting their services. Raises Unavailable."""
    reason = missing()
    if reason is None or not reason.startswith("not installed"):
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{reason}; there is no apt-get here")
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    packages = ["slurm-wlm", "munge", "iproute2"]
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], capture_output=True, text=True, env=environment)
            if done.returncode:
                raise Unavailable(f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
    finally:
        if made:
            policy.unlink()


class MiniSlurm:
    """A cluster of `nodes` nodes, node1 to nodeN, with `gpus` made-up GPUs each. `with MiniSlurm(2) as cluster: ...`"""

    def __init__(self, nodes: int = 2, gpus: int = 4, cpus: int = 8, grace: int = 30, kill_wait: int = 5):
        """`grace`: seconds a preempted job has; `kill_wait`: seconds between SIGTERM and SIGKILL."""
        self.nodes, self.gpus, self.cpus, self.grace, self.kill_wait = nodes, gpus, cpus, grace, kill_wait
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> MiniSlurm:
        if reason := missing():
            raise Unavailable(reason)
        self.folder = Path(tempfile.mkdtemp(prefix="mini-slurm-"))
        try:
            self._up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for name in [*reversed(self._daemons)]:  # the nodes first: nothing of a job may see its controller gone
            self._end(name)
        if hasattr(self, "bridge"):
            subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """What sbatch and the others need to find this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __call__(self, *command: str | Path, check: bool = True, **options) -> str:
        """Run a command beside the cluster, as on its login node; returns stdout."""
        options = {"env": os.environ | self.environment, "capture_output": True, "text": True, "timeout": 120} | options
        options["restore_signals"] = False  # with SIGPIPE, a controller that is busy would end its clients
        done = subprocess.run([str(part) for part in command], **options)
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout}{done.stderr}"
            )
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """Fields of `scontrol show job`: JobState, Restarts, NodeList, ExitCode ..."""
        shown: list[str] = []

        def answered() -> bool:  # a controller that is busy gives no answer
            shown[:] = self("scontrol", "show", "job", "-o", str(number), check=False).splitlines()
            return bool(shown)

        if not until(answered, 60, 1):
            raise RuntimeError(f"scontrol shows no job {number}: {self._last_words()}")
        return dict(re.findall(r"(\w+)=(\S*)", shown[0]))

    def wait(self, number: int | str, states: str = "", timeout: float = 240) -> dict[str, str]:
        """Wait until a job has ended, or is in one of `states` (a regular expression)."""
        wanted = states or rf"(?!(?:{GOING})$).*"
        job: dict[str, str] = {}

        def reached() -> bool:
            job.clear()
            job.update(self.job(number))
            return re.fullmatch(wanted, job["JobState"]) is not None

        if not until(reached, timeout, 0.3):
            raise TimeoutError(f"job {number} is {job} after {timeout} s")
        return job

    def kill_node(self, name: str) -> None:
        """A crash: every process of the node is gone at once; the controller notices 10 to 30 s later."""
        self._end(name)

    def processes(self, name: str) -> list[int]:
        """What runs on a node, SLURM's own aside: those in its network, whatever they call themselves."""
        if name not in self._daemons:
            return []
        first = self._daemons[name].pid
        network = os.readlink(f"/proc/{first}/ns/net")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile; a zombie has no network
                command, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
                own = command in ("unshare", "slurmd", "slurmstepd") or int(fields.split()[1]) == first
                if not own and os.readlink(folder / "ns" / "net") == network:
                    found.append(int(folder.name))
        return found

    def start_node(self, name: str) -> None:
        """Bring a node up, or up again."""
        number = int(name.removeprefix("node"))
        gate = self.folder / f"{name}.gate"
        gate.unlink(missing_ok=True)
        os.mkfifo(gate)
        (self.folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        pair, inner = f"{self.bridge}v{number}", f"{self.bridge}i{number}"
        namespaces = "--mount --pid --fork --kill-child --mount-proc --propagation slave --net --uts".split()
        arguments = [gate, self.folder, name, inner, self._address(name)]
        process = self._start(name, ["unshare", *namespaces, "bash", "-c", NODE, "_", *arguments])
        here = os.readlink("/proc/self/ns/net")
        if not until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != here, 5):
            raise Unavailable(f"no network namespace for {name}")
        subprocess.run(["ip", "link", "del", pair], capture_output=True)
        _ip("link", "add", pair, "type", "veth", "peer", "name", inner, "netns", str(process.pid))
        _ip("link", "set", pair, "master", self.bridge, "up")
        gate.write_text("go\n")

    def revive(self) -> None:
        """Bring every node up that was killed, and wait until jobs can run there."""
        for number in range(1, self.nodes + 1):
            if f"node{number}" not in self._daemons:
                self.start_node(f"node{number}")
        self.wait_for_nodes()

    def wait_for_nodes(self, timeout: float = 60) -> None:
        """Until every node is idle."""
        query = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N")
        if not until(lambda: len(self(*query, check=False).split()) == self.nodes, timeout):
            shown = self("sinfo", "-N", "-l", check=False)
            raise Unavailable(f"the nodes do not come up:\n{shown}{self._last_words()}")

    def _up(self) -> None:
        for name in ("log", "state", "spool", "dev"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)
        self._open_network()
        self._write_configuration()
        key, munge = self.folder / "munge.key", self.folder / "munge.socket"
        options = [f"--socket={munge}", f"--key-file={key}", f"--pid-file={self.folder}/munged.pid"]
        options += [f"--log-file={self.folder}/log/munged.log", f"--seed-file={self.folder}/munged.seed"]
        self._start("munged", ["munged", "--force", "--foreground", *options])
        if not until(lambda: not subprocess.run(["munge", "-n", "-S", munge], capture_output=True).returncode, 10):
            raise Unavailable(f"munged does not start: {self._last_words()}")
        self._start("slurmctld", ["slurmctld", "-D", "-c", "-s", "-f", self.folder / "slurm.conf"])
        for number in range(1, self.nodes + 1):
            self.start_node(f"node{number}")
        self.wait_for_nodes()

    def _open_network(self) -> None:
        """A bridge with a subnet that no other cluster on this host has."""
        for number in secrets.SystemRandom().sample(range(1, 250), 20):
            bridge = f"msl{number}"
            if subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], capture_output=True).returncode == 0:
                self.bridge, self.subnet, self.port = bridge, f"10.201.{number}", 26000 + number
                _ip("addr", "add", f"{self.subnet}.1/24", "dev", bridge)
                _ip("link", "set", bridge, "up")
                return
        raise Unavailable("no network bridge can be made on this machine")

    def _write_configuration(self) -> None:
        host, names = socket.gethostname().split(".")[0], [f"node{number}" for number in range(1, self.nodes + 1)]
        hosts = [f"127.0.0.1 localhost\n{self.subnet}.1 {host}", *(f"{self._address(name)} {name}" for name in names)]
        nodes = (
            f"NodeName={name} NodeHostname={name} NodeAddr={self._address(name)} Port={self.port} CPUs={self.cpus} "
            f"Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cpus} ThreadsPerCore=1 RealMemory=16000 "
            f"Gres=gpu:{self.gpus}\n"
            for name in names
        )
        values = {"host": host, "subnet": self.subnet, "port": self.port, "folder": self.folder}
        values |= {"grace": self.grace, "kill_wait": self.kill_wait}
        gpus = f"{self.folder}/dev/nvidia[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.folder}/dev/nvidia0"
        for number in range(self.gpus):  # a twin of /dev/null
            os.mknod(self.folder / "dev" / f"nvidia{number}", 0o20666, os.makedev(1, 3))
        files = {
            "slurm.conf": "".join(nodes) + CONF.format(**values),
            "gres.conf": f"AutoDetect=off\nNodeName={','.join(names)} Name=gpu File={gpus}\n",
            "plugstack.conf": "",
            "job_submit.lua": SUBMIT_LUA,
            "hosts": "\n".join(hosts) + "\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        }
        for name, text in files.items():
            (self.folder / name).write_text(text)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        (self.folder / "munge.key").chmod(0o400)

    def _address(self, name: str) -> str:
        return f"{self.subnet}.{10 + int(name.removeprefix('node'))}"

    def _start(self, name: str, command: list) -> subprocess.Popen:
        with (self.folder / "log" / f"{name}.out").open("a") as log:
            self._daemons[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return self._daemons[name]

    def _end(self, name: str) -> None:
        """A node goes by SIGKILL (its process namespace's first process takes all others along); a daemon is asked."""
        process = self._daemons.pop(name)
        process.send_signal(signal.SIGKILL if name.startswith("node") else signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()[-3:])


def until(condition: Callable[[], object], timeout: float, pause: float = 0.1) -> bool:
    """Poll for at most `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def _chosen(options: argparse.Namespace) -> Iterator[MiniSlurm]:
    with MiniSlurm(options.nodes, options.gpus) as cluster:
        print(f"cluster up: {options.nodes} nodes, SLURM_CONF={cluster.environment['SLURM_CONF']}", file=sys.stderr)
        yield cluster


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install")
    run = verbs.add_parser("run")
    run.add_argument("--nodes", type=int, default=2)
    run.add_argument("--gpus", type=int, default=4)
    run.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the network goes too
    try:
        if options.verb == "install":
            install()
            print(
                missing() or f"installed: {subprocess.run(['slurmctld', '-V'], capture_output=True, text=True).stdout}"
            )
            return 0
        with _chosen(options) as cluster:
            command = [part for part in options.command if part != "--"] or ["bash"]
            return subprocess.run(command, env=os.environ | cluster.environment).returncode
    except Unavailable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
