"""What the MiniLM teacher reaches on the GLUE tasks at hand, as `bertnas teacher` makes it from the studies in glue/.

    python benchmarks/glue_teachers.py --glue GLUE_FOLDER [--tasks rte mrpc] [--seeds 0 1 2] [--threads 2]

Scores are on GLUE's dev files (glue_dev), which no training looks at: the best epoch is chosen on rows held out of
train. A finished teacher is reused, so it can be run in pieces. Raw results go to
benchmarks/results/glue_teachers.json; the last line is one JSON object. 3 to 6 minutes per teacher on two cores.
"""

from statistics import mean

from common import RESULTS, Results, change, finish, glue_study, options_parser, start

from nni_bertnas.config import to_dict
from nni_bertnas.stages.run import Run
from nni_bertnas.stages.stage import ensure


def main() -> None:
    """Make the teachers, write the results, print the figures."""
    parser = options_parser(__doc__, tasks=("rte", "mrpc", "cola", "stsb"), seeds=(0, 1, 2))
    arguments = parser.parse_args()
    start(arguments.threads)
    results = Results(RESULTS / "glue_teachers.json")
    for seed in arguments.seeds:
        for name in arguments.tasks:
            study = glue_study(name, arguments.glue)
            study = change(study, name=f"{study.name}-{seed}" if seed else study.name, seed=seed)
            result = ensure(Run(study), "teacher")
            found = results.data.get(name, {})
            results[name] = {**found, str(seed): {**result, "teacher": to_dict(study.teacher)}}
            print(name, seed, {key: result[key] for key in result if key.startswith(("dev", "glue_dev"))}, flush=True)
    figures = {
        name: {metric: round(mean(one["glue_dev"][metric] * 100 for one in found.values()), 2) for metric in metrics}
        for name, found in results.data.items()
        for metrics in [next(iter(found.values()))["glue_dev"]]
    }
    finish(figures)


if __name__ == "__main__":
    main()
