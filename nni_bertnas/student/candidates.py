"""Candidates on disk: architecture, weights, block score, cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from nni_bertnas.errors import PhaseError
from nni_bertnas.search.strategies import Found
from nni_bertnas.student.cost import cell_call, count_flops, count_params, measure_latency_ms
from search_space.cells import Cell, build_cell

_LATENCY_ROWS = 40
# space, depth, architecture, score, inherited, num_params, num_flops, latency_ms, weights (file name)
Candidate = dict[str, Any]


def save_candidates(
    folder: Path, found: Sequence[Found], teacher_size: int, lengths: Sequence[int], number: int = 0
) -> list[Candidate]:
    """Save trained cells, best score first, with what each costs.

    Args:
        folder: Takes one safetensors file per candidate.
        found: What a search or a training gave.
        teacher_size: Width of the teacher's hidden states.
        lengths: Real sequence lengths, of which the first 40 serve: FLOPs at their median, latency over all.
        number: Of the cell, where a search made several together.

    Returns:
        What goes into the phase's result.
    """
    lengths = lengths[:_LATENCY_ROWS]
    ranked = sorted(found, key=lambda one: one.score)
    middle = sorted(lengths)[len(lengths) // 2]
    cells = [one.cells[number].eval() for one in ranked]
    calls = {str(rank): cell_call(cell, teacher_size, lengths) for rank, cell in enumerate(cells)}
    latency_ms = measure_latency_ms(calls, lengths)
    candidates = []
    for rank, (one, cell) in enumerate(zip(ranked, cells, strict=True)):
        weights = f"candidate_{rank}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in cell.state_dict().items()}, folder / weights)
        candidates.append(
            {
                "space": one.space,
                "depth": one.depth,
                "architecture": dict(one.architecture),
                "score": one.scores[number],
                "inherited": one.inherited,
                "num_params": count_params(cell),
                "num_flops": count_flops(calls[str(rank)], middle),
                "latency_ms": latency_ms[str(rank)],
                "weights": weights,
            }
        )
    return candidates


def load_cell(folder: Path, candidate: Candidate, teacher_size: int, hidden_size: int) -> Cell:
    """A candidate's trained cell in eval mode.

    Raises:
        PhaseError: Its weights are missing or do not fit.
    """
    cell = build_cell(candidate["space"], candidate["architecture"], candidate["depth"], teacher_size, hidden_size)
    path = folder / candidate["weights"]
    try:
        cell.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise PhaseError(f"{path} is missing or damaged ({error}); make it anew with bertnas run --force") from error
    return cell.eval()
