"""A study's NNI experiments on NNI's `remote` service: other machines, reached by `ssh`, that share a folder.

Study, data and run folder stand under the same paths everywhere, so trials find their input and leave their results as
they do on one machine. Three things that NNI does are mended, without anything to be set up over there:

- it upgrades itself in the environment that it is given, and opens a port on every interface. NNI is therefore given
  a folder of ours in place of the environment's, whose `python` refuses the one and closes the other;
- its manager has to be reached from over there, while it listens on this machine's loopback alone. Each machine's own
  loopback leads to it through `ssh`.
"""

import importlib.metadata
import json
import logging
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nni.experiment.config import ExperimentConfig, RemoteConfig
from nni.experiment.config.training_services.remote import RemoteMachineConfig

from nni_bertnas.config import Study, to_dict
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.launch import trial_server
from nni_bertnas.launch.channel import TURNS
from nni_bertnas.launch.lines import OPEN, Line, Taken, line
from nni_bertnas.launch.loopback import MACHINE, write_python
from nni_bertnas.launch.machines import Machine, Machines, ask, ssh
from nni_bertnas.launch.manager import MachineLost, hold_port
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import Stage

_PORTS = 5  # that are tried, until one is free here and everywhere
_SSH_FAILED = 255  # its exit code where it, and not what it was to run, failed
_log = logging.getLogger(__name__)
# `bertnas`, which ends with its input, which ends with who asked for it.
_COMMAND = """\
import os, signal, sys, threading
def watch():
    while os.read(0, 4096):  # not sys.stdin, whose lock the interpreter wants at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
from nni_bertnas.cli import main
sys.exit(main(sys.argv[1:]))
"""
# What a machine says of itself: one JSON object.
_ASKED = """\
import importlib.metadata, json, os, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
def read(path):
    try:
        return open(path).read()
    except OSError:
        return None
names, paths, token = (json.loads(text) for text in sys.argv[1:4])
print(json.dumps({
    "versions": {name: version(name) for name in names},
    "missing": [path for path in paths if not os.path.exists(path)],
    "token": read(token),
    "writable": os.access(os.path.dirname(token), os.W_OK),
    "loopback": [read("/proc/sys/kernel/random/boot_id"), os.stat("/proc/self/ns/net").st_ino],
}))
"""


class Remote:
    """The machines at work for one study.

    Args:
        machines: Of the file.
        run: Of the study.
        study_path: The study's file.

    Raises:
        ConfigError: A path of the study does not hold on every machine.
    """

    def __init__(self, machines: Machines, run: Run, study_path: Path) -> None:
        self.machines, self.run = machines, run
        self.folder = Path.cwd()  # where trials run, as they do on one machine
        self.study_path = study_path.resolve()
        self.tools = run.root.absolute() / "nni" / "remote"
        self.elsewhere: set[int] = set()  # numbers of machines whose loopback is not this one's
        self.lost: set[int] = set()  # numbers of those that went while this command ran; they get no more work
        self.lines: dict[int, Line] = {}  # to those at work
        self.forks = ""  # with its number the folder on every machine, of the process that trials are forked from
        _check_paths(machines, self.folder, self.study_path, run.root, run.study)

    def prepare(self) -> None:
        """Ask every machine whether it will do, and write what NNI calls there.

        Raises:
            PhaseError: One is not reached, or will not do; with what to do.
        """
        self.tools.mkdir(parents=True, exist_ok=True)
        token = self.tools / f".seen-{secrets.token_hex(4)}"
        token.write_text(token.name, encoding="utf-8")
        names = ["nni", "nni-bertnas"]
        paths = [str(path) for path in (self.folder, self.study_path, *_study_paths(self.run.study))]
        here = [Path("/proc/sys/kernel/random/boot_id").read_text(), os.stat("/proc/self/ns/net").st_ino]
        try:
            for number, machine in enumerate(self.machines.machines):
                said = json.loads(ask(self.machines, machine, _ASKED, *map(json.dumps, (names, paths, str(token)))))
                _check_answer(machine, said, token, self.machines.shared_folder)
                if said["loopback"] != here:
                    self.elsewhere.add(number)
        finally:
            token.unlink(missing_ok=True)
        for number, machine in enumerate(self.machines.machines):
            write_python(self._tools_of(number), machine.python, number)

    def _tools_of(self, number: int) -> Path:
        return self.tools / f"machine{number}"

    def place(self, config: ExperimentConfig, stage: Stage) -> None:
        """Put a stage's experiment onto the machines.

        Args:
            config: Of the experiment as it would run here.
            stage: Whose.
        """
        turns, upload = self.tools / "turns", self.tools / "upload"
        upload.mkdir(exist_ok=True)
        (upload / "README").write_text("All that a trial needs is in the shared folder; NNI has to send something.\n")
        self.forks = f"/tmp/bertnas-{secrets.token_hex(8)}"
        trial = shlex.join([f"trials.{stage.name}", "--study", str(self.study_path)])
        python = f"python -m {trial_server.__name__} {self.forks}-${MACHINE}/socket {trial}"
        config.trial_command = f"cd {shlex.quote(str(self.folder))} && {TURNS}={turns} exec {python}"
        config.trial_code_directory = str(upload)
        config.nni_manager_ip = "127.0.0.1"
        gpus = self.machines.machines[0].gpus is not None
        config.trial_gpu_number = 1 if gpus else None
        at_once = len(self._left) * self.machines.trials
        config.trial_concurrency = 1 if stage.alone else self.run.study.nni.concurrency or at_once
        config.training_service = RemoteConfig(
            machine_list=[
                RemoteMachineConfig(
                    host=machine.host,
                    port=machine.port,
                    user=machine.user,
                    ssh_key_file=machine.key_file,
                    python_path=str(self._tools_of(number)),
                    **({"gpu_indices": machine.gpus, "max_trial_number_per_gpu": 1} if gpus else {}),
                )
                for number, machine in self._left
            ]
        )

    @property
    def _left(self) -> list[tuple[int, Machine]]:
        """Numbers and machines that are not lost."""
        return [one for one in enumerate(self.machines.machines) if one[0] not in self.lost]

    def _lose(self, number: int, why: str) -> MachineLost:
        """Give no more work to a machine; says so.

        Raises:
            PhaseError: It was the last.
        """
        self.lost.add(number)
        self.lines.pop(number, None)
        if not self._left:
            raise PhaseError(f"no machine is left: {why}; run the same command again to go on")
        return MachineLost(f"{why}; what it was at goes to the others")

    def check(self) -> None:
        """Look whether the machines at work are there.

        Raises:
            MachineLost: One has not been for a minute; it gets no more work.
            PhaseError: It was the last.
        """
        for number, one in self.lines.items():
            if one.lost:
                raise self._lose(number, f"{self.machines.machines[number]} has not answered for a minute")

    @contextmanager
    def hold_port(self, first: int) -> Iterator[int]:
        """A port that is free here, and leads here from the loopback of every machine, as long as the block lasts.

        As long, trials are forked there from a process that has loaded what they need, see
        :mod:`~nni_bertnas.launch.trial_server`.

        Raises:
            ConfigError: None of the next is free everywhere.
            MachineLost: One is not there any more.
        """
        for _ in range(_PORTS):
            with hold_port(first, beside=1) as port, ExitStack() as lines:
                try:
                    for number, machine in self._left:
                        try:
                            self.lines[number] = lines.enter_context(line(self._line(number, port), str(machine)))
                        except PhaseError as error:
                            raise self._lose(number, str(error)) from error
                except Taken:
                    first = port + 1
                    continue
                yield port
                return
        names = ", ".join(str(self.machines.machines[number]) for number in sorted(self.elsewhere))
        raise ConfigError(
            f"nni.port: no port near {first} is free on all machines ({names}), or sshd there forwards none; choose "
            "another, and see that sshd_config there has AllowTcpForwarding yes or remote"
        )

    def make(self, stage: Stage) -> None:
        """Make a stage that is no NNI experiment on the first machine that is there.

        Raises:
            PhaseError: It failed there; its own output was shown.
        """
        while True:
            number, machine = self._left[0]
            words = [f"{self._tools_of(number)}/python", "-c", _COMMAND, stage.name, str(self.study_path)]
            command = f"cd {shlex.quote(str(self.folder))} && exec {shlex.join(words)}"
            with subprocess.Popen([*ssh(self.machines, machine), command], stdin=subprocess.PIPE) as process:
                try:
                    code = process.wait()
                finally:
                    process.terminate()
            if code != _SSH_FAILED:
                break
            _log.warning("%s", self._lose(number, f"{machine}: ssh ended while it made {stage.name}"))
        if code:
            raise PhaseError(f"{stage.name} failed on {machine} (exit code {code}); see above")

    def _line(self, number: int, port: int) -> list[str]:
        """What lets a port of a machine's loopback lead to the same port of this one's, and trials be forked there."""
        forward = ["-R", f"127.0.0.1:{port}:127.0.0.1:{port}"] if number in self.elsewhere else []
        folder, python = shlex.quote(str(self.folder)), self._tools_of(number) / "python"
        forks = f"{self.forks}-{number}"  # apart, should two machines have one /tmp
        server = f"cd {folder} && {python} -m {trial_server.__name__} --serve {forks}/socket >/dev/null 2>&1"
        command = f"umask 077 && mkdir -p {forks} && echo {OPEN} && {server}; rm -rf {forks}"
        return [*ssh(self.machines, self.machines.machines[number], *forward), command]


def _study_paths(study: Study) -> list[Path]:
    """All files and folders that a study names and that are there, absolute."""
    found: list[Path] = []

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for one in value.values():
                visit(one)
        elif isinstance(value, list):
            for one in value:
                visit(one)
        elif isinstance(value, str) and os.sep in value:
            with suppress(OSError):
                if Path(value).exists():
                    found.append(Path(value).absolute())

    visit({name: part for name, part in to_dict(study).items() if name != "runs_dir"})
    return found


def _check_paths(machines: Machines, folder: Path, study_path: Path, root: Path, study: Study) -> None:
    shared = Path(machines.shared_folder)
    if not shared.is_dir():
        raise ConfigError(f"shared_folder: {shared} is no folder of this machine")
    named = [("the folder that bertnas is run in", folder), ("STUDY", study_path), ("runs_dir", root.absolute())]
    named += [("a path of the study", path) for path in _study_paths(study)]
    for what, path in named:
        if not (path.is_relative_to(shared) or path.resolve().is_relative_to(shared.resolve())):
            raise ConfigError(f"{what}: {path} is not under shared_folder, {shared}; other machines do not see it")
    if not all(part.isascii() and " " not in part and "'" not in part and "$" not in part for part in root.parts):
        raise ConfigError(f"runs_dir: {root} has characters that NNI's shell commands do not take")


def _check_answer(machine: Machine, said: dict[str, Any], token: Path, shared: str) -> None:
    for name, there in said["versions"].items():
        here = importlib.metadata.version(name)
        if there != here:
            raise PhaseError(
                f"{machine}: {machine.python} has {name} {there or 'not at all'}, this machine {here}; install the same"
            )
    if said["token"] != token.name:
        raise PhaseError(
            f"{machine}: what this machine writes into {token.parent} is not seen there; shared_folder ({shared}) "
            "must be one folder of all machines, as by NFS"
        )
    if not said["writable"]:
        raise PhaseError(f"{machine}: {machine.user} cannot write into {token.parent}; give that user the right to")
    if said["missing"]:
        raise PhaseError(f"{machine}: {', '.join(said['missing'])} is not there; put it under {shared}")
