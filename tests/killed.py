"""Makes units of a tiny study in processes that end themselves by SIGKILL, again and again until each is made.

Run as a program, as it forks itself for each attempt before anything has started threads.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from tiny import tiny_run

from nni_bertnas import quiet_libraries
from nni_bertnas.stages.stage import ensure
from nni_bertnas.training import resume


def make(root: Path, sections: dict[str, Any], stage: str, unit: dict[str, Any], savings: int) -> None:
    """Make a unit; after so many savings of this process it is killed, 0: never."""
    resume.PERIOD_SECONDS = 0.0
    write, done = resume.Unfinished._write, []

    def write_and_die(self: Any, jobs: Any) -> None:
        write(self, jobs)
        done.append(1)
        if len(done) == savings:
            os.kill(os.getpid(), signal.SIGKILL)

    resume.Unfinished._write = write_and_die  # type: ignore[method-assign]
    ensure(tiny_run(root, **sections), stage, unit)


def attempts(root: Path, sections: dict[str, Any], stage: str, unit: dict[str, Any], savings: int) -> int:
    """Until the unit is made."""
    for number in range(1, 100):
        if (child := os.fork()) == 0:
            code = 1
            try:
                make(root, sections, stage, unit, savings)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ended = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(ended):
            assert os.WEXITSTATUS(ended) == 0, (stage, unit)
            return number
        assert os.WTERMSIG(ended) == signal.SIGKILL
    raise AssertionError(f"{stage} {unit} is never made")


if __name__ == "__main__":
    quiet_libraries()
    told = json.loads(sys.argv[2])
    print(json.dumps([attempts(Path(sys.argv[1]), *job) for job in told]))
