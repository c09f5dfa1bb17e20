"""How a student's text begins: vectors of word pieces, positions and token types, to what enters the first cell.

Needs torch alone, so that a saved student loads anywhere.
"""

from typing import Any

import torch
from torch import Tensor, nn


class Embeddings(nn.Module):
    """BERT's input embeddings with the word matrix factorised into `(vocab, rank) @ (rank, hidden)`.

    Of a student without cells the `(vocab, rank)` alone.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        rank, size = config.embedding_size, config.teacher_hidden_size
        self.word = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        if config.cells:
            self.expand = nn.Identity() if rank == size else nn.Linear(rank, size, bias=False)
            self.position = nn.Embedding(config.max_position_embeddings, size)
            self.token_type = nn.Embedding(config.type_vocab_size, size)
            self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
        """What a text begins as.

        Args:
            input_ids: `(batch, seq)`.
            token_type_ids: `(batch, seq)`; all 0 without it.
            first: Number of the first position.

        Returns:
            Vectors of the word pieces, `(batch, seq, rank)`, and what the map into the first cell takes,
            `(batch, seq, teacher_hidden)`; without cells the vectors again.
        """
        words = self.word(input_ids)
        if not hasattr(self, "position"):
            return words, words
        stop = first + words.shape[1]
        _check_places(stop, self.position.num_embeddings)
        types = self.token_type.weight[0] if token_type_ids is None else self.token_type(token_type_ids)
        return words, self.norm(self.expand(words) + self.position.weight[first:stop] + types)

    @torch.no_grad()
    def start_from(
        self,
        *,
        words: Tensor,
        positions: Tensor,
        types: Tensor,
        scale: Tensor,
        shift: Tensor,
        pieces: Tensor | None = None,
    ) -> None:
        """Start from the parts of a teacher's embedding stage, `scale * normed(words + positions + types) + shift`.

        The word matrix becomes its principal components, the mean removed, which the positions take over.

        Args:
            words: `(vocab, teacher_hidden)`.
            positions: `(places, teacher_hidden)`.
            types: `(types, teacher_hidden)`.
            scale: `(teacher_hidden,)`.
            shift: `(teacher_hidden,)`.
            pieces: Vectors of all word pieces, `(vocab, size)`, to start the word matrix from instead.
        """
        mean = words.mean(0)
        rank, size = self.word.embedding_dim, words.shape[1]
        source = words if pieces is None else pieces
        centred = source - source.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred)
        top = directions[:, -rank:]
        self.word.weight.copy_(words if rank == size and pieces is None else centred @ top)
        if not hasattr(self, "position"):
            self.word.weight.div_(self.word.weight.std())  # no norm follows
            return
        if isinstance(self.expand, nn.Linear):  # the best map back to the teacher's own
            vectors = self.word.weight
            back = top if pieces is None else torch.linalg.solve(vectors.T @ vectors, vectors.T @ (words - mean)).T
            self.expand.weight.copy_(back)
        self.position.weight.copy_(positions)
        if isinstance(self.expand, nn.Linear):
            self.position.weight.add_(mean)
        self.token_type.weight.copy_(types)
        self.norm.weight.copy_(scale)
        self.norm.bias.copy_(shift)


class FusedEmbeddings(nn.Module):
    """Embeddings and the map into the first cell, computed at the rank of the word matrix, so that it costs a fifth.

    With w a word piece's vector, E its map into the teacher's width and p what its position and token type add, all
    without their mean over the units, the norm divides E w + p by the root of its variance. That is a sum of |E w|², a
    number per word piece, 2 w · Eᵀp, and |p|², a number per position and type; what enters the first cell is linear
    in w and p but for the division.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        rank, self.width = config.embedding_size, config.hidden_size
        self.size, self.eps, self.places = (
            config.teacher_hidden_size,
            config.layer_norm_eps,
            config.max_position_embeddings,
        )
        self.word = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        self.square = nn.Embedding(config.vocab_size, 1)
        self.into = nn.Linear(rank, self.width)
        # of every token type and position: its part of what enters the cell, Eᵀp, |p|²
        self.place = nn.Embedding(config.type_vocab_size * self.places, self.width + rank + 1)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, first: int = 0) -> tuple[Tensor, Tensor]:
        """See :meth:`Embeddings.forward`; what enters the first cell is `(batch, seq, hidden)`."""
        words, stop = self.word(input_ids), first + input_ids.shape[1]
        _check_places(stop, self.places)
        if token_type_ids is None:
            place = self.place.weight[first:stop]
        else:
            place = self.place(token_type_ids * self.places + torch.arange(first, stop, device=words.device))
        part, cross, square = place.split([self.width, words.shape[-1], 1], dim=-1)
        total = self.square(input_ids) + square + 2 * (words * cross).sum(-1, keepdim=True)
        scale = (total / self.size).clamp(min=0).add(self.eps).rsqrt()
        return words, torch.addcmul(self.into.bias, nn.functional.linear(words, self.into.weight) + part, scale)

    @torch.no_grad()
    def take(self, embeddings: Embeddings, link: nn.Module) -> None:
        """Take over embeddings that expand, and the map that follows them."""
        norm, expands = embeddings.norm, embeddings.expand
        assert isinstance(expands, nn.Linear)
        weight, bias = norm.weight.double(), norm.bias.double()
        expand = expands.weight.double()  # (size, rank)
        expand = expand - expand.mean(0)
        vectors, positions = embeddings.word.weight, embeddings.position.weight.double()
        place = (embeddings.token_type.weight.double()[:, None] + positions).flatten(0, 1)
        place = place - place.mean(1, keepdim=True)
        into, shift = torch.diag(weight), bias
        if isinstance(link, nn.Linear):
            into, shift = link.weight.double() * weight, link.weight.double() @ bias + link.bias.double()
        self.word.weight.copy_(vectors)
        gram = (expand.T @ expand).to(vectors.dtype)
        self.square.weight.copy_(((vectors @ gram) * vectors).sum(1, keepdim=True))
        self.into.weight.copy_(into @ expand)
        self.into.bias.copy_(shift)
        self.place.weight.copy_(
            torch.cat([place @ into.T, place @ expand, (place * place).sum(1, keepdim=True)], dim=1)
        )


def _check_places(count: int, known: int) -> None:
    if torch.compiler.is_exporting():
        torch._check(count <= known)
    elif count > known:
        raise ValueError(f"{count} word pieces, but the student knows {known} positions: tokenise with truncation=True")
