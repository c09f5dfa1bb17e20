"""Other machines that a study's trials run on: the file that names them, and `ssh` to them.

The system's own `ssh` asks and forwards for us, as it knows the hosts' keys; NNI's connections are its own.
"""

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from nni_bertnas.config.kinds import STRICT, Natural, PathText, Positive
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.study_files import load_settings

_SECONDS = 60  # that a machine has to answer


def _absolute(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError("must be absolute, as it has to hold on every machine")
    return path


# NNI puts it into shell commands as it is.
_Shared = Annotated[PathText, AfterValidator(_absolute), Field(pattern=r"^[\w./@+~-]+$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Machine:
    """One machine that `ssh` reaches."""

    host: Annotated[str, Field(pattern=r"^[\w.:-]+$")]
    user: Annotated[str, Field(pattern=r"^[\w.][\w.@-]*$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    key_file: PathText = "~/.ssh/id_ed25519"  # a private key without a passphrase; NNI asks no agent
    python: _Shared  # the folder of the environment's `python`, e.g. /shared/me/venv/bin
    gpus: list[Natural] | None = None  # their numbers; a trial gets one

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Machines:
    """All of a file."""

    shared_folder: _Shared  # the same files under the same path on every machine, and on this one
    machines: Annotated[list[Machine], Field(min_length=1)]
    trials: Positive = 1  # at a time on each machine; supernet trials go one by one, as they measure latency
    known_hosts: PathText = "~/.ssh/known_hosts"

    @model_validator(mode="after")
    def _alike(self) -> "Machines":
        names = [str(machine) for machine in self.machines]
        if len(set(names)) < len(names):
            raise ValueError("machines: one is named twice; set trials for more than one trial at a time")
        if len({machine.gpus is None for machine in self.machines}) > 1:
            raise ValueError("machines: either all have gpus or none; use two files")
        return self


def load_machines(path: Path) -> Machines:
    """Read a file of machines.

    Raises:
        ConfigError: With every problem of the file, one a line, by dotted path.
    """
    found = load_settings(Machines, path)
    # Defaults are not validated, and so not expanded.
    machines = [
        dataclasses.replace(one, key_file=str(Path(one.key_file).expanduser().absolute())) for one in found.machines
    ]
    for machine in machines:
        if not Path(machine.key_file).is_file():
            raise ConfigError(f"{path}: machines.key_file: {machine.key_file} is not there; ssh-keygen makes one")
    known_hosts = str(Path(found.known_hosts).expanduser().absolute())
    return dataclasses.replace(found, machines=machines, known_hosts=known_hosts)


def ssh(all_of_them: Machines, machine: Machine, *options: str) -> list[str]:
    """The command line that reaches a machine, without the command there; it never asks and never prompts."""
    settings = {
        "BatchMode": "yes",
        "IdentitiesOnly": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": all_of_them.known_hosts,
        "ConnectTimeout": "15",
        "ServerAliveInterval": "15",
        "ExitOnForwardFailure": "yes",
        "LogLevel": "ERROR",
    }
    words = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    # Whatever the user's own file says of this host, ports are forwarded by our options alone.
    own = ["-o", "ClearAllForwardings=yes"] if not options else []
    place = ["-i", machine.key_file, "-p", str(machine.port), f"{machine.user}@{machine.host}"]
    return ["ssh", *words, *own, *options, *place]


def ask(all_of_them: Machines, machine: Machine, script: str, *arguments: str) -> str:
    """Run a Python script on a machine, by the environment's Python.

    Args:
        all_of_them: Whose known hosts are asked.
        machine: Where.
        script: Of the standard library alone; read from its standard input, so nothing is written there.
        arguments: Its `sys.argv[1:]`.

    Returns:
        What it printed.

    Raises:
        PhaseError: The machine is not reached, or the script fails.
    """
    remote = shlex.join([f"{machine.python}/python", "-", *arguments])
    try:
        done = subprocess.run(
            [*ssh(all_of_them, machine), remote],
            input=script,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise PhaseError("ssh is not installed on this machine; install OpenSSH's client") from error
    except subprocess.TimeoutExpired as error:
        raise PhaseError(
            f"{machine}: no answer within {_SECONDS} s; try: {shlex.join(ssh(all_of_them, machine))}"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().splitlines()[-1:] or ["no message"]
    if "Host key verification failed" in done.stderr:
        remedy = (
            f"compare its key and add it: ssh-keyscan -p {machine.port} {machine.host} >> {all_of_them.known_hosts}"
        )
    elif done.returncode == 255:
        remedy = f"try: {shlex.join(ssh(all_of_them, machine))}"
    else:
        remedy = f"machines.python must be the folder of an environment's python there, got {machine.python}"
    raise PhaseError(f"{machine}: {said[0]}; {remedy}")
