"""The whole student as a Hugging Face model.

Needs torch and transformers alone, so that a saved student loads anywhere. `save_pretrained` copies this file,
`cells.py` and `operations.py` beside the weights, so `AutoModelForSequenceClassification.from_pretrained(folder,
trust_remote_code=True)` works where this project is not installed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .cells import Cell, build_body


class Embeddings(nn.Module):
    """BERT's input embeddings with the word matrix factorised into `(vocab, rank) @ (rank, hidden)`."""

    def __init__(self, config: "StudentConfig") -> None:
        super().__init__()
        rank, size = config.embedding_size, config.teacher_hidden_size
        self.word = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        self.expand = nn.Identity() if rank == size else nn.Linear(rank, size, bias=False)
        self.position = nn.Embedding(config.max_position_embeddings, size)
        self.token_type = nn.Embedding(config.type_vocab_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """`(batch, seq)` -> `(batch, seq, teacher_hidden)`."""
        if input_ids.shape[1] > self.position.num_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} word pieces, but the student knows {self.position.num_embeddings} positions: "
                "tokenise with truncation=True"
            )
        x = self.expand(self.word(input_ids)) + self.position.weight[: input_ids.shape[1]]
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        return self.norm(x + types)

    @torch.no_grad()
    def copy_from(self, teacher: Any) -> None:
        """Start from the embeddings of a BERT, RoBERTa or DistilBERT: SVD of the word matrix, the rest as it is."""
        words = teacher.word_embeddings.weight
        if isinstance(self.expand, nn.Linear):
            _, directions = torch.linalg.eigh(words.T @ words)
            top = directions[:, -self.expand.in_features :]
            self.word.weight.copy_(words @ top)
            self.expand.weight.copy_(top)
        else:
            self.word.weight.copy_(words)
        positions = teacher.position_embeddings
        first = 0 if positions.padding_idx is None else positions.padding_idx + 1  # RoBERTa counts from there
        self.position.weight.copy_(positions.weight[first : first + self.position.num_embeddings])
        if hasattr(teacher, "token_type_embeddings"):
            self.token_type.weight.copy_(teacher.token_type_embeddings.weight)
        else:
            self.token_type.weight.zero_()
        self.norm.load_state_dict(teacher.LayerNorm.state_dict())


class AttentionMaxPool(nn.Module):
    """A learned weighted mean beside the maximum, both over unmasked positions, through one dense layer."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(hidden_size, 1)
        self.dense = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`(batch, seq, hidden)`, `(batch, seq)` -> `(batch, hidden)`."""
        hidden = ~mask.unsqueeze(-1)
        lowest = torch.finfo(x.dtype).min
        share = self.weigh(x).masked_fill(hidden, lowest).softmax(dim=1)
        pooled = torch.cat([(share * x).sum(dim=1), x.masked_fill(hidden, lowest).amax(dim=1)], dim=-1)
        return nn.functional.gelu(self.dense(pooled))


# transformers wants a configuration that can be made from nothing
_CELLS = ({"space": "layers", "depth": 1, "architecture": {"layer_0": "convolution_3"}},)


class StudentConfig(PretrainedConfig):
    """Shape of a student.

    Args:
        cells: For every block its `space`, `depth` and `architecture`; see `cells.py`.
        hidden_size: Width of the cells.
        teacher_hidden_size: Width in which the embeddings are summed.
        embedding_size: Rank of the word embedding.
    """

    model_type = "bertnas-student"

    def __init__(
        self,
        cells: Sequence[dict[str, Any]] = _CELLS,
        hidden_size: int = 192,
        teacher_hidden_size: int = 384,
        embedding_size: int = 128,
        vocab_size: int = 30522,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        dropout: float = 0.1,
        **kwargs: object,
    ) -> None:
        self.cells = list(cells)
        self.hidden_size = hidden_size
        self.teacher_hidden_size = teacher_hidden_size
        self.embedding_size = embedding_size
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.dropout = dropout
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class StudentForSequenceClassification(PreTrainedModel):
    """Embeddings, the chained cells, pooling, classifier."""

    config_class = StudentConfig
    base_model_prefix = "student"

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        same = config.teacher_hidden_size == width
        self.embeddings = Embeddings(config)
        self.links = nn.ModuleList(
            nn.Identity() if same else nn.Linear(config.teacher_hidden_size if block == 0 else width, width)
            for block in range(len(config.cells))
        )
        self.cells = nn.ModuleList(
            build_body(one["space"], one["architecture"], one["depth"], width) for one in config.cells
        )
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionMaxPool(width)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classify token ids.

        Args:
            input_ids: `(batch, seq)`.
            attention_mask: `(batch, seq)`, 1 = keep; all are kept without it.
            token_type_ids: `(batch, seq)`; all 0 without it.
            labels: `(batch,)`, class numbers, or scores where there is one output; with them the output has the mean
                cross-entropy, or the mean squared error, as loss.
            output_hidden_states: Whether the output has the hidden state at every block's exit, each
                `(batch, seq, hidden)`.
            return_dict: False for a plain tuple.
            **kwargs: Ignored; what pipelines pass besides.

        Returns:
            logits `(batch, num_labels)`, and what was asked for.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        x = self.embeddings(input_ids, token_type_ids)
        exits = []
        second = None if token_type_ids is None else token_type_ids.bool() & mask
        for link, body in zip(self.links, self.cells, strict=True):
            x = body(link(x), mask, second)
            exits.append(x)
        logits = self.classifier(self.dropout(self.pool(self.norm(x), mask)))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype))
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=tuple(exits) if output_hidden_states else None
        )
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def load_cells(self, cells: Sequence[Cell]) -> None:
        """Take over trained cells; the map out of one block and into the next fold into one matrix.

        Args:
            cells: One per block, of the architectures in `config.cells`.
        """
        previous = None
        for link, body, cell in zip(self.links, self.cells, cells, strict=True):
            body.load_state_dict(cell.body.state_dict())
            if isinstance(link, nn.Linear):
                into = cell.into
                assert isinstance(into, nn.Linear)
                if previous is None:
                    link.load_state_dict(into.state_dict())
                else:
                    assert isinstance(previous, nn.Linear)
                    link.weight.copy_(into.weight @ previous.weight)
                    link.bias.copy_(into.weight @ previous.bias + into.bias)
            previous = cell.out


StudentConfig.register_for_auto_class()
StudentForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AutoConfig.register(StudentConfig.model_type, StudentConfig, exist_ok=True)
AutoModelForSequenceClassification.register(StudentConfig, StudentForSequenceClassification, exist_ok=True)
