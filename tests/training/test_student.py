"""Training of whole students."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from nni_bertnas.config import DistillSettings, SupernetSettings
from nni_bertnas.data.batches import Batch
from nni_bertnas.data.tasks import TASKS
from nni_bertnas.training.losses import Balance, label_loss
from nni_bertnas.training.student import StudentDistillation
from nni_bertnas.training.trainer import KeepBest
from search_space.student import StudentConfig, StudentForSequenceClassification


class Weights(pl.Callback):
    """Keeps a copy of the weights after every step."""

    def __init__(self) -> None:
        self.every: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: object) -> None:
        self.every.append(copy.deepcopy(module.student.state_dict()))


def distillation(averaging: float, steps: int) -> StudentDistillation:
    torch.manual_seed(0)
    config = StudentConfig(
        hidden_size=8, teacher_hidden_size=8, embedding_size=8, vocab_size=20, max_position_embeddings=8
    )
    return StudentDistillation(
        StudentForSequenceClassification(config), [], [], torch.nn.Linear(8, 8),
        distill=DistillSettings(losses={"logit_mse": 1.0}), settings=SupernetSettings(averaging=averaging),
        spec=TASKS["sst2"], balance=Balance(), steps=steps,
    )  # fmt: skip


def batches(count: int) -> list[Batch]:
    ids = torch.randint(1, 20, (count, 4, 6))
    types, mask, labels = torch.zeros_like(ids), torch.ones_like(ids).bool(), torch.randint(0, 2, (count, 4))
    logits = torch.randn(count, 4, 2)
    return [
        Batch(input_ids=one, mask=mask[n], token_type_ids=types[n], logits=logits[n], labels=labels[n])
        for n, one in enumerate(ids)
    ]


def test_what_dev_judges_is_the_running_mean_of_the_weights() -> None:
    module, seen = distillation(0.25, 64), Weights()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, gradient_clip_val=1.0, callbacks=[seen], enable_model_summary=False, **options)
    trainer.fit(module, torch.utils.data.DataLoader(batches(64), batch_size=None))
    kept = 1 - 1 / (0.25 * 64 / 8)  # each eighth step forgets half
    name = "classifier.weight"
    mean = seen.every[7][name]
    for weights in seen.every[15::8]:
        mean = kept * mean + (1 - kept) * weights[name]
    torch.testing.assert_close(module.judged.state_dict()[name], mean)
    assert not module.judged.training and not module.judged.classifier.weight.equal(module.student.classifier.weight)
    assert {id(one) for one in module.parameters()}.isdisjoint({id(one) for one in module.judged.parameters()})
    plain = distillation(0.0, 64)
    plain.on_fit_start()
    assert plain.judged is plain.student


@pytest.mark.parametrize(("noise", "kept"), [(0.0, 1), (0.015, 2), (0.05, 3), (1.0, 4)])
def test_the_last_epoch_within_the_noise_of_the_best_is_kept(noise: float, kept: int) -> None:
    model = torch.nn.Linear(1, 1)
    best = KeepBest("dev_f1", model, noise=lambda: noise)
    for epoch, score in enumerate([0.7, 0.8, 0.79, 0.76, 0.1, float("nan")]):
        model.weight.data.fill_(float(epoch))
        told = {"callback_metrics": {"dev_f1": torch.tensor(score)}, "current_epoch": epoch % 3}  # of two fits
        best.on_validation_end(type("Trainer", (), told)(), None)
    best.on_fit_end(None, None)
    assert (best.epoch, model.weight.item(), best.best) == (kept, kept, pytest.approx(0.8))


def test_dev_is_as_noisy_as_its_rows_are_few() -> None:
    module = distillation(0.0, 4)
    for batch in batches(8):
        module.validation_step(batch, 0)
    seen = module.scorer._seen
    share = float(torch.cat([(predicted == label).double() for predicted, label in seen]).mean())
    module.log_dict = lambda *_, **__: None
    module.on_validation_epoch_end()
    assert module.scorer.noise == pytest.approx((share * (1 - share) / 32) ** 0.5, rel=0.25)


@pytest.mark.parametrize("kind", ["weights", "logits"])
def test_balanced_loss_of_labels(kind: str) -> None:
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, -100, 0])
    train = [0.0] * 6 + [1.0] * 3 + [2.0]
    balance, share = Balance.of(kind, train, 3), torch.tensor([0.6, 0.3, 0.1])
    rows = [(one, int(label)) for one, label in zip(logits, target, strict=True) if label >= 0]
    if kind == "weights":
        weights = [1 / (3 * share[label]) for _, label in rows]
        losses = [weight * -one.log_softmax(0)[label] for weight, (one, label) in zip(weights, rows, strict=True)]
        naive = sum(losses) / sum(weights)
    else:
        naive = sum(-(one + share.log()).log_softmax(0)[label] for one, label in rows) / len(rows)
    torch.testing.assert_close(label_loss(logits, target, balance), naive)
    none = torch.full((6,), -100)
    assert float(label_loss(logits, none, balance)) == 0
    torch.testing.assert_close(label_loss(logits, target, Balance.of("off", train, 3)), F.cross_entropy(logits, target))


@pytest.mark.parametrize("kind", ["weights", "logits"])
def test_a_rare_class_is_found_more_often_where_the_loss_is_balanced(kind: str) -> None:
    torch.manual_seed(0)
    labels = (torch.rand(2000) < 0.05).long()
    x = torch.randn(2000, 2) + 1.2 * labels[:, None]
    found = {}
    for one in ("off", kind):
        torch.manual_seed(1)
        model, balance = torch.nn.Linear(2, 2), Balance.of(one, labels.tolist(), 2)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100)

        def closure(model: torch.nn.Module = model, balance: Balance = balance) -> torch.Tensor:
            model.zero_grad()
            loss = label_loss(model(x), labels, balance)
            loss.backward()
            return loss

        optimizer.step(closure)
        right = model(x).argmax(1) == labels
        found[one] = float(right[labels == 1].double().mean()), float(right[labels == 0].double().mean())
    assert found["off"][0] < 0.4 and found[kind][0] > 0.7
    assert found[kind][1] < found["off"][1]
