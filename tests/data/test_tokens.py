import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from nni_bertnas.data.batches import model_inputs
from nni_bertnas.data.rows import Rows
from nni_bertnas.data.tokens import behind_separator, tokenize
from search_space.student import StudentConfig, StudentForSequenceClassification

WORDS = {name: number for number, name in enumerate(["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", "d"])}


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 1), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token="</s>",
        cls_token="<s>", unk_token="<unk>",
    )  # fmt: skip


def test_what_stands_behind_the_first_separator() -> None:
    rows = [[1, 4, 2, 2, 5, 2], [1, 2, 2, 4, 2], [1, 4, 5], [1, 2]]
    naive = [[int(2 in row[:place]) for place in range(len(row))] for row in rows]
    naive[0][3] = naive[1][2] = 2  # doubles the one before
    found = behind_separator(np.concatenate(rows), np.array(list(map(len, rows))), 2)
    assert found.tolist() == [one for row in naive for one in row]
    assert not behind_separator(np.concatenate(rows), np.array(list(map(len, rows))), None).any()


@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_a_tokenizer_without_token_types_still_tells_pairs_apart(encoding: str) -> None:
    tokens = tokenize(roberta_tokenizer(), Rows(["a b", "c"], [0, 1], ["d", "a b c"]), 16)
    assert tokens.tokens.tolist() == [1, 4, 5, 2, 2, 7, 2, 1, 6, 2, 2, 4, 5, 6, 2]
    assert tokens.token_types.tolist() == [0, 0, 0, 0, 2, 1, 1, 0, 0, 0, 2, 1, 1, 1, 1]
    batch = tokens.batch([0, 1])
    shape = RobertaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0,
        type_vocab_size=1, max_position_embeddings=20,
    )  # fmt: skip
    teacher = RobertaForSequenceClassification(shape).eval()
    assert "token_type_ids" not in model_inputs(teacher, batch)  # it has one type alone
    assert teacher(**model_inputs(teacher, batch)).logits.isfinite().all()
    torch.manual_seed(0)
    config = StudentConfig(
        hidden_size=8, teacher_hidden_size=8, embedding_size=8, vocab_size=8, max_position_embeddings=20,
        type_vocab_size=1, head="align", encoding=encoding, symmetric=True, sep_token_id=2,
    )  # fmt: skip
    student = StudentForSequenceClassification(config).eval()
    mask, second = student._sides_of(batch.input_ids, batch.mask, batch.token_type_ids)
    assert second is not None and second.equal(batch.token_type_ids == 1)
    assert mask.equal(batch.mask & (batch.token_type_ids < 2))
    assert student(**model_inputs(student, batch)).logits.isfinite().all()
