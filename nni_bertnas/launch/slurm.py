"""A study as jobs of Slurm: which there are, their scripts, and how they are handed over.

A job runs `bertnas` commands, so that what it leaves is what a run on one machine leaves, and what is finished is found
again however often a job begins anew.
"""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nni_bertnas.artifacts import write_whole
from nni_bertnas.config import Study, to_dict, to_yaml
from nni_bertnas.config.cluster import JOBS as KINDS
from nni_bertnas.config.cluster import ClusterProfile
from nni_bertnas.errors import ConfigError, PhaseError
from nni_bertnas.stages import STAGES
from nni_bertnas.stages.outline import make_outline
from nni_bertnas.stages.run import STUDY, Run
from nni_bertnas.stages.stage import load
from nni_bertnas.tracking.histories import HISTORY, OUTLINE, write_state
from nni_bertnas.tracking.slurm import FOLDER, JOBS, LIVE, WAITING, ask, read_jobs

SUBMIT = "submit.sh"
_WARNING_SECONDS = 300  # before the time is up, in which a unit's half result is removed
_TASK = "$SLURM_ARRAY_TASK_ID"


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        name: A key of :data:`~nni_bertnas.config.cluster.JOBS`.
        stages: That it makes; none: it reports.
        units: Tasks of its array.
        in_turn: Whether one task at a time runs, as latency is measured.
        after: Names of the jobs that it needs.
    """

    name: str
    stages: tuple[str, ...]
    units: int
    in_turn: bool
    after: tuple[str, ...]

    @property
    def does(self) -> str:
        """In words."""
        if not self.stages:
            return KINDS[self.name]
        tasks = f", {self.units} tasks{' in turn' if self.in_turn else ''}" if self.units > 1 else ""
        return f"{', '.join(self.stages)}{tasks}"

    def at_once(self, profile: ClusterProfile) -> int:
        """How many of its tasks may run beside each other."""
        return 1 if self.in_turn else min(self.units, profile.of(self.name).at_once or self.units)

    def commands(self, study: Path) -> list[str]:
        """Lines of shell that do its work."""
        path = shlex.quote(str(study))
        if not self.stages:
            return [f"bertnas report {path}"]
        if load(self.stages[0]).optimize is None:
            return [f"bertnas {name} {path}" for name in self.stages]
        return [f"bertnas {self.stages[0]} {path} --unit {_TASK if self.units > 1 else 0}"]


def make_jobs(run: Run) -> list[Job]:
    """The jobs of a study, each after those that it needs.

    What NNI makes on one machine is a job of its own, a task per unit. The smaller stages are made before, or beside.
    """
    stages = [stage for stage in map(load, STAGES) if stage.units(run)]
    first = next(number for number, stage in enumerate(stages) if stage.optimize is not None)
    place = {
        stage.name: stage.name if stage.optimize is not None else "prepare" if number < first else "rows"
        for number, stage in enumerate(stages)
    }
    found: dict[str, Job] = {}
    for name in dict.fromkeys(place.values()):
        own = [stage for stage in stages if place[stage.name] == name]
        needed = {place[on] for stage in own for on in STAGES[stage.name].on if on in place} - {name}
        if own[0].alone:
            needed |= {other for other, job in found.items() if load(job.stages[0]).alone}
        units = 1 if own[0].optimize is None else len(own[0].units(run))
        found[name] = Job(name, tuple(one.name for one in own), units, own[0].alone, _nearest(needed, found))
    found["report"] = Job("report", (), 1, False, _nearest(set(found), found))
    return sorted(found.values(), key=lambda job: list(KINDS).index(job.name))


def _nearest(names: set[str], jobs: dict[str, Job]) -> tuple[str, ...]:
    """Some jobs without those that others of them are after anyway."""

    def before(name: str) -> set[str]:
        return {one for other in jobs[name].after for one in (other, *before(other))}

    implied = {one for name in names for one in before(name)}
    return tuple(name for name in jobs if name in names - implied)


def write_jobs(run: Run, profile: ClusterProfile) -> Path:
    """Write the scripts of all jobs, the study as it is now, and what hands them over.

    Args:
        run: Of the study.
        profile: Of the cluster.

    Returns:
        Their folder.

    Raises:
        ConfigError: The profile's file of keys is not there, or others can read it.
        PhaseError: Jobs of the study are in the queue.
    """
    _check_keys(profile)
    _check_queue(run)
    jobs = make_jobs(run)
    run = Run(with_devices(run.study, jobs, profile))
    folder = (run.root / FOLDER).resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_whole(folder / STUDY, to_yaml(run.study))  # so that a change of the user's file meets no waiting job
    for stale in folder.glob("*.sbatch"):
        stale.unlink()
    outline = make_outline(run)
    for job in jobs:
        for name in job.stages:
            outline["stages"][name]["at_once"] = job.at_once(profile)
        write_whole(folder / f"{job.name}.sbatch", spell_script(run.study.name, job, profile, folder))
    write_whole(folder / SUBMIT, spell_submit(run.study.name, jobs))
    write_state(run.root / HISTORY, OUTLINE, outline)
    return folder


def with_devices(study: Study, jobs: Sequence[Job], profile: ClusterProfile) -> Study:
    """The study as jobs read it: as many processes make a unit together as its job has GPUs, where it has several."""
    gpus = {name: profile.of(job.name).gpus for job in jobs for name in job.stages}
    found = {name: count for name in to_dict(study.devices) if (count := gpus.get(name) or 0) > 1}
    return replace(study, devices=replace(study.devices, **found))


def _check_keys(profile: ClusterProfile) -> None:
    if profile.environment_file is None:
        return
    path = Path(profile.environment_file)
    if not path.is_file():
        raise ConfigError(f"environment_file: {path} is not there; write it, or leave the key out")
    if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"environment_file: others can reach {path}; run: chmod 600 {path}")


def _check_queue(run: Run) -> None:
    tasks = ask(read_jobs(run.root)) or []
    if waiting := sorted({task.job for task in tasks if task.state in (*LIVE, *WAITING)}):
        raise PhaseError(
            f"jobs {', '.join(waiting)} of this study are in Slurm's queue; wait for them, or end them with: "
            f"scancel {' '.join(waiting)}"
        )


def spell_script(study: str, job: Job, profile: ClusterProfile, folder: Path) -> str:
    """The script of one job.

    Args:
        study: Its name.
        job: The job.
        profile: Of the cluster.
        folder: Of the scripts and the frozen study.
    """
    head = [
        "#!/bin/bash",
        f"# Of the study {study}: {job.does}. Written by `bertnas slurm`; {SUBMIT} hands all jobs over.",
        *(f"#SBATCH {option}" for option in _options(study, job, profile, folder)),
    ]
    module = "command -v module >/dev/null || . /etc/profile"
    setup = [*([module] if profile.modules else []), *(f"module load {one}" for one in profile.modules), *profile.setup]
    if profile.environment_file is not None:
        setup.append(f"set -a; . {shlex.quote(str(Path(profile.environment_file).resolve()))}; set +a")
    setup += [
        f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
        "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
        "export SLURM_JOB_NAME=bash # Lightning starts no ranks, and takes no signals, by Slurm's variables then",
        f"cd {shlex.quote(os.getcwd())}",
    ]
    work = [f"work {command}" for command in job.commands(folder / STUDY)]
    numbers = f"RESTARTS={profile.restarts}\nRETRIES={profile.retries}"
    return "\n".join([*head, *setup, numbers, _BODY.strip(), *work, ""])


def _options(study: str, job: Job, profile: ClusterProfile, folder: Path) -> list[str]:
    """Options of sbatch."""
    own, array = profile.of(job.name), job.units > 1
    assert own.hours is not None and own.memory_gib is not None and own.cpus is not None
    seconds = max(60, round(own.hours * 3600))
    log = str(folder / "logs").replace("%", "%%") + f"/{job.name}-{'%A_%a' if array else '%j'}.log"
    wanted = {
        "job-name": f"{study}-{job.name}",
        "account": profile.account,
        "partition": own.partition,
        "qos": profile.qos,
        "constraint": own.constraint,
        "nodes": 1,
        "time": f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}",
        "cpus-per-task": own.cpus,
        "mem": f"{max(1, round(own.memory_gib * 1024))}M",
        "gres": f"gpu:{own.gpus}" if own.gpus else None,
        "array": f"0-{job.units - 1}%{job.at_once(profile)}" if array else None,
        "mail-user": profile.mail,
        "mail-type": profile.mail_type if profile.mail else None,
        "output": log,
        "open-mode": "append",
        "signal": f"B:USR1@{min(_WARNING_SECONDS, seconds // 4)}",
    }
    given = [f"--{name}={shlex.quote(str(value))}" for name, value in wanted.items() if value is not None]
    return [*given, "--requeue", *map(shlex.quote, own.options or [])]


# bash hands on no signal while a command is in its foreground, so the work is in the background. The last task of an
# array has the array's own number, and by that alone all of its tasks would be put back.
_BODY = """
me=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
running=

requeue() { # why, how often at most, the exit code where that is over
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$2" ]; then
    echo "error: $1, and the job was begun anew ${SLURM_RESTART_COUNT:-0} time(s) already" >&2
    exit "$3"
  fi
  echo "$1: job $me goes back into the queue"
  trap '' USR1
  trap - TERM
  scontrol requeue "$me" && sleep 600 # meanwhile Slurm ends this script
  exit "$3"
}
stop() {
  [ -z "$running" ] || { kill -TERM "$running" 2>/dev/null; wait "$running"; }
}
trap 'trap "" USR1; stop; requeue "the time is nearly up" "$RESTARTS" 1' USR1
trap 'stop; exit 143' TERM # scancel

work() {
  "$@" &
  running=$!
  wait "$running"
  code=$?
  running=
  case $code in
    0) ;;
    2 | 130 | 143) exit $code ;; # wrong settings, or ended on purpose: once more would be no better
    137) requeue "killed, as for want of memory (memory_gib)" "$RETRIES" $code ;;
    *) requeue "failed with code $code" "$RETRIES" $code ;;
  esac
}
"""


def spell_submit(study: str, jobs: list[Job]) -> str:
    """The script that hands jobs to Slurm, each after those that it needs, and writes their numbers down."""
    lines = []
    for job in jobs:
        after = "".join(f":${name}" for name in job.after)
        options = f" --dependency=afterok{after} --kill-on-invalid-dep=yes" if after else ""
        lines.append(f"submit {job.name}{options}")
    return "\n".join([_SUBMIT_HEAD.format(study=study, jobs=JOBS).strip(), *lines, f"mv {JOBS}.new {JOBS}", ""])


# Slurm keeps the environment that a job is handed over with, so no key may be in it.
_SUBMIT_HEAD = """
#!/bin/bash
# Hands the jobs of the study {study} to Slurm, each after those that it needs. Written by `bertnas slurm`.
set -eE
cd "$(dirname "$0")"
unset $(compgen -e | grep -iE 'key|token|secret|password')
handed=
trap '[ -z "$handed" ] || scancel $handed' ERR # all or none
: > {jobs}.new

submit() {{ # name of the job, further options
  local id
  id=$(sbatch --parsable "${{@:2}}" "$1.sbatch")
  id=${{id%%;*}}
  handed="$handed $id"
  declare -g "$1=$id"
  echo "$1 $id" | tee -a {jobs}.new
}}
"""


def submit(folder: Path) -> dict[str, str]:
    """Hand the jobs to Slurm.

    Args:
        folder: Of the scripts.

    Returns:
        The number of every job by its name.

    Raises:
        PhaseError: Slurm does not take them; with what it said.
    """
    if shutil.which("sbatch") is None:
        raise PhaseError(f"sbatch is not on this machine; on one where it is: bash {folder / SUBMIT}")
    done = subprocess.run(["bash", str(folder / SUBMIT)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise PhaseError(f"Slurm did not take the jobs, none is left in its queue: {said}")
    return read_jobs(folder.parent)
