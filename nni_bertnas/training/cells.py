"""Cells trained to turn the teacher's hidden state at a block's entry into the one at its exit, and their score."""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nni_bertnas.config import TrainingSettings
from nni_bertnas.data.batches import Batch, Numbers, make_loader
from nni_bertnas.errors import CandidateError
from nni_bertnas.machine import Span
from nni_bertnas.store.reader import FeatureDataset, FeatureStore
from nni_bertnas.student.candidates import Candidate
from nni_bertnas.training.losses import Output, Scale, masked_absolute_sum, weighted_losses
from nni_bertnas.training.optimizers import OPTIMIZERS, adamw_linear
from nni_bertnas.training.probes import Probes
from nni_bertnas.training.relations import Attention, captured
from nni_bertnas.training.trainer import Clock, EpochReport, Report, fit, pl
from search_space.cells import Cell

_REGRESSION_TOKENS = 50_000  # enough for a few hundred units
_log = logging.getLogger(__name__)
_WARMUP = 0.05  # share of all steps
_TIMED_STEPS = 50  # at most


class CellLoss:
    """The loss of the cells of consecutive blocks, the mean over blocks; and the optimiser that lowers it.

    Args:
        settings: Of the training.
        variances: Of every block's targets.
        probes: Of every block's exit, where a loss asks for them.
        attention: Of the teacher behind every block's entry, likewise.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        variances: Sequence[float],
        probes: Probes | None = None,
        attention: Attention | None = None,
    ) -> None:
        self.settings = settings
        self.scale = Scale(variances=variances, probes=probes, attention=attention)

    def __call__(
        self, cells: Sequence[nn.Module], batch: Batch, forward: Callable[[], Sequence[Tensor]] | None = None
    ) -> Tensor:
        """Of what the cells make of the hidden states at their entries: a scalar.

        Args:
            cells: One per block.
            batch: With the hidden states at all edges.
            forward: What lets the cells run; None: they are called one after another.
        """
        with captured(cells) as attention:
            outputs = [cell(x, batch.mask, batch.second) for cell, x in zip(cells, batch.hidden[:-1], strict=True)
                       ] if forward is None else forward()  # fmt: skip
        targets = replace(batch, hidden=batch.hidden[1:], entries=batch.hidden[:-1] if self.scale.attention else ())
        made = Output(hidden=outputs, attention=attention)
        return weighted_losses(self.settings.losses, made, targets, self.scale)[0]

    def optimizer(self, parameters: Iterable[nn.Parameter], steps: int) -> dict[str, Any]:
        """The optimiser with a linear schedule over so many steps, as Lightning takes it."""
        kind = OPTIMIZERS[self.settings.optimizer]
        return adamw_linear(parameters, self.settings.learning_rate, self.settings.weight_decay, _WARMUP, steps, kind)


class _Together(pl.LightningModule):
    """Trains the cells of consecutive blocks."""

    def __init__(self, cells: Sequence[nn.Module], loss: CellLoss, steps: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.loss = loss
        self.steps = steps

    def _loss(self, batch: Batch) -> Tensor:
        return self.loss(list(self.cells), batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=batch.num_rows, sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        return self.loss.optimizer(self.cells.parameters(), self.steps)


class _Beside(_Together):
    """Trains candidates of one block, each as if it were alone: they share the batches only."""

    def _loss(self, batch: Batch) -> Tensor:
        return torch.stack([self.loss([cell], batch) for cell in self.cells]).sum()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Called by Lightning: every candidate has a norm of its own."""
        for cell in self.cells:
            torch.nn.utils.clip_grad_norm_(cell.parameters(), gradient_clip_val)


def score_batches(store: FeatureStore, edges: Sequence[int], rows: Numbers | None = None) -> Iterable[Batch]:
    """The batches on which cells are scored: of all rows of a split, or of some."""
    loader: Iterable[Batch] = make_loader(FeatureDataset(store, edges, rows=rows), 128, shuffle=False)
    return loader


@torch.inference_mode()
def block_scores(
    cells: Sequence[nn.Module],
    store: FeatureStore,
    edges: Sequence[int],
    batches: Iterable[Batch] | None = None,
) -> list[float]:
    """Relative L1 of every cell on one split: mean|S - T| / std(T), lower is better.

    DNA, arXiv 1911.13053; comparable between blocks. The cells are left in eval mode.

    Args:
        cells: One per pair of neighbouring edges.
        store: The split.
        edges: Layer numbers; cell b leads from the b-th to the next.
        batches: Of the split; None takes all of it.
    """
    for cell in cells:
        cell.eval()
    device = next((parameter.device for cell in cells for parameter in cell.parameters()), torch.device("cpu"))
    totals, entries = [0.0] * len(cells), 0
    for one in score_batches(store, edges) if batches is None else batches:
        batch = one.to(device)
        entries += int(batch.mask.sum()) * batch.hidden[0].shape[-1]
        for number, cell in enumerate(cells):
            output = cell(batch.hidden[number], batch.mask, batch.second)
            totals[number] += masked_absolute_sum(output, batch.hidden[number + 1], batch.mask).item()
    variances = [store.variance(edge) for edge in edges[1:]]
    return [total / entries / variance**0.5 for total, variance in zip(totals, variances, strict=True)]


class CellTrainer:
    """Trains and scores cells of one block, or of consecutive blocks that share an architecture.

    Args:
        train: Features of the training split.
        dev: Features of the split that scores.
        edges: Layer numbers of the blocks' edges, one more than there are blocks.
        settings: Of the training.
        probes: Of the teacher's edges, where a loss asks for them.
        attention: Of the teacher behind every block's entry, likewise.
        precision: See :func:`~nni_bertnas.machine.mixed_precision`.
        seed: Of the order of the rows and of their choice.
        report: Takes the metrics of every epoch.
    """

    def __init__(
        self,
        *,
        train: FeatureStore,
        dev: FeatureStore,
        edges: Sequence[int],
        settings: TrainingSettings,
        probes: Probes | None = None,
        attention: Attention | None = None,
        precision: str = "float32",
        seed: int = 0,
        report: Report = lambda metrics: None,
    ) -> None:
        self.train, self.dev, self.edges, self.probes, self.attention = train, dev, tuple(edges), probes, attention
        self.settings, self.precision, self.seed, self.report = settings, precision, seed, report
        self.rows = np.random.default_rng(seed).permutation(train.rows)[: settings.max_rows]
        exits = self.edges[1:]
        self.loss = CellLoss(
            settings, [train.variance(edge) for edge in exits], None if probes is None else probes.of(exits), attention
        )
        self._maps: dict[tuple[int, int], tuple[Tensor, ...]] = {}  # a search starts many cells from the same

    @property
    def blocks(self) -> int:
        """How many cells are trained together."""
        return len(self.edges) - 1

    def loader(self, rows: Numbers, part: str = "train", **options: Any) -> Any:
        """Batches of some rows of train, in a new order every epoch; options are those of `make_loader`."""
        dataset = FeatureDataset(self.train, self.edges, part=part, rows=rows)
        return make_loader(dataset, self.settings.batch_size, shuffle=True, seed=self.seed, **options)

    @torch.no_grad()
    def start_maps(self, cells: Iterable[nn.Module]) -> None:
        """Set the maps into and out of each cell's width to the best linear map from its entry to its exit.

        See :func:`reduced_rank_regression`. Equal widths have no maps, and nothing is done.
        """
        for cell, (entry, exit_) in zip(cells, itertools.pairwise(self.edges), strict=True):
            assert isinstance(cell, Cell)
            if not isinstance(cell.into, nn.Linear):
                continue
            width = cell.into.out_features
            if (entry, width) not in self._maps:
                x, y = self.train.sample((entry, exit_), _REGRESSION_TOKENS, self.seed)
                self._maps[entry, width] = reduced_rank_regression(x, y, width)
            parameters = [*cell.into.parameters(), *cell.out.parameters()]
            for parameter, value in zip(parameters, self._maps[entry, width], strict=True):
                parameter.copy_(value)

    def score(self, cells: Sequence[nn.Module], batches: Iterable[Batch] | None = None) -> list[float]:
        """Block scores on dev as they are, see :func:`block_scores`.

        Raises:
            CandidateError: One is not a finite number.
        """
        scores = block_scores(cells, self.dev, self.edges, batches)
        if not np.isfinite(scores).all():
            raise CandidateError(f"its block score is {scores}; a lower cell.learning_rate may help")
        return scores

    def fit_cells(self, cells: Sequence[nn.Module], epochs: int, share: float = 1.0) -> list[float]:
        """Train cells from the weights they have on the rows there are for training, and score them on dev.

        Args:
            cells: One per block.
            epochs: Of training.
            share: Of the rows; always the same ones.

        Returns:
            Their block scores, see :func:`block_scores`.

        Raises:
            CandidateError: A score is not a finite number.
        """
        if epochs:
            self._fit(_Together, cells, epochs, self.rows[: math.ceil(share * len(self.rows))])
        return self.score(cells)

    def fit_candidates(self, cells: Sequence[nn.Module], epochs: int) -> None:
        """Train candidates of one block on the same batches, from the weights they have; none touches another.

        Args:
            cells: Candidates.
            epochs: Of training.
        """
        self._fit(_Beside, cells, epochs, self.rows)

    def time_step(self, cells: Sequence[nn.Module], limit: float, *, beside: bool = False) -> Span:
        """What a training step takes, measured for so many seconds; the cells are trained meanwhile.

        Args:
            cells: One per block, or candidates of one block.
            limit: Seconds.
            beside: Whether they are candidates.
        """
        clock, epochs = Clock(limit), -(-_TIMED_STEPS // len(self.loader(self.rows)))
        self._fit(_Beside if beside else _Together, cells, epochs, self.rows, [clock])
        return clock.step

    def _fit(
        self, kind: type[_Together], cells: Sequence[nn.Module], epochs: int, rows: Numbers,
        callbacks: Sequence[pl.Callback] = (),
    ) -> None:  # fmt: skip
        loader = self.loader(rows)
        fit(
            kind(cells, self.loss, epochs * len(loader)),
            loader,
            None,
            epochs,
            [EpochReport(self.report), *callbacks],
            precision=self.precision,
            wide=kind is _Beside,
            gradient_clip=self.settings.gradient_clip,
        )

    def train_on(self, candidates: Sequence[Candidate], hidden_size: int, *, fresh: bool) -> list[Candidate]:
        """Candidates of one block trained further beside each other.

        Args:
            candidates: With their cells, which are trained in place unless `fresh`.
            hidden_size: Width of the cells.
            fresh: Whether they start from random layers and the best linear maps instead.

        Returns:
            Those that a score came out of, with cell and score, in the same order.
        """
        if fresh:
            candidates = [one.fresh(self.train.hidden_size, hidden_size) for one in candidates]
            for one in candidates:
                self.start_maps([one.trained])
        self.fit_candidates([one.trained.train() for one in candidates], self.settings.epochs)
        found = []
        for one in candidates:
            try:
                found.append(replace(one, score=self.score([one.trained])[0]))
            except CandidateError as error:
                _log.warning("%s: %s", one, error)
        return found


def reduced_rank_regression(x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best linear map of a given rank from x to y, as a map into `rank` units and one out of them.

    A cell starts from it, so that its layers only learn what no linear map gives (Izenman, "Reduced-rank
    regression for the multivariate linear model", 1975).

    Args:
        x: `(rows, teacher_hidden)`.
        y: `(rows, teacher_hidden)`.
        rank: Units between the maps, at most teacher_hidden.

    Returns:
        Weight `(rank, teacher_hidden)` and bias `(rank,)` into, weight `(teacher_hidden, rank)` and bias
        `(teacher_hidden,)` out, as `nn.Linear` holds them.
    """
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = (x - x_mean).double(), (y - y_mean).double()
    gram = x.T @ x
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    full = torch.linalg.solve(gram + ridge, x.T @ y)
    _, directions = torch.linalg.eigh(full.T @ gram @ full)  # of the fitted values
    out = directions[:, -rank:]
    into = (full @ out).T.to(x_mean.dtype)
    return into, -into @ x_mean, out.to(x_mean.dtype), y_mean
