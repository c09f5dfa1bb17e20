"""What the profiles tiny, small and base come to: parameters and speed, for a MiniLM and for a BERT of 12 layers.

    python benchmarks/profiles.py [--lengths 30 64 128]

Students of three blocks without layers, with the fewest and with the most that the profile searches (a convolution of
three, and attention of four heads, in every layer), random weights, beside a teacher of random weights of the same
shape, batch 1, one thread, in turns. Nothing else should run beside it. Raw results go to
benchmarks/results/profiles.json; the last line is one JSON object. A minute on one core.
"""

import argparse
from typing import Any

import torch
from common import RESULTS, Results, finish, start
from transformers import BertConfig, BertForSequenceClassification

from nni_bertnas.config import StudentSettings
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.profiles import PROFILES
from nni_bertnas.student.build import new_student, resolve_shape
from nni_bertnas.student.candidates import Candidate, no_layer
from nni_bertnas.student.cost import count_params, measure_latency_ms, model_call
from nni_bertnas.student.start import Start

_TEACHERS = {
    "MiniLM, 6 layers": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "BERT, 12 layers": BertConfig(),
}
_BLOCKS = 3


def main() -> None:
    """Build, measure, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[30, 64, 128])
    arguments = parser.parse_args()
    start(1)
    results = Results(RESULTS / "profiles.json")
    for name, config in _TEACHERS.items():
        torch.manual_seed(0)
        teacher = BertForSequenceClassification(config).eval()
        beginning = Start(teacher=teacher, spec=TASKS["sst2"], note={"max_length": 128})
        models: dict[str, Any] = {"teacher": teacher}
        for profile, sections in PROFILES.items():
            settings = resolve_shape(StudentSettings(**sections["student"]), TASKS["sst2"])
            depths = sections["cell"]["depths"]
            cells = {
                "no layers": [],
                f"{min(depths)} convolution(s) a block": [chain("convolution_3", min(depths))] * _BLOCKS,
                f"{max(depths)} attention layer(s) a block": [chain("attention_4", max(depths))] * _BLOCKS,
            }
            for kind, blocks in cells.items():
                models[f"{profile}, {kind}"] = new_student(settings, beginning, blocks).fused()
        rows: dict[str, Any] = {key: {"num_params": count_params(model)} for key, model in models.items()}
        for length in arguments.lengths:
            calls = {key: model_call(model, [length]) for key, model in models.items()}
            times = measure_latency_ms(calls, [length] * 60)
            for key, value in times.items():
                rows[key][f"ms at {length}"] = value
                rows[key][f"speed at {length}"] = times["teacher"] / value
        results[name] = rows
    finish(
        {
            name: {
                key: [f"{one['num_params'] / 1e6:.1f} M", *(f"{one[f'speed at {n}']:.1f}x" for n in arguments.lengths)]
                for key, one in rows.items()
            }
            for name, rows in results.data.items()
        }
    )


def chain(operation: str, depth: int) -> Candidate:
    """A cell of one operation, so many times; none at depth 0."""
    if not depth:
        return no_layer()
    architecture = {f"layer_{number}": operation for number in range(depth)}
    return Candidate(space="layers", depth=depth, architecture=architecture)


if __name__ == "__main__":
    main()
