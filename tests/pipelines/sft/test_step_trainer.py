"""Neither the arrangement of a step nor a lack of memory changes the training."""

import pytest
import torch

from ja_instruct.errors import InputError
from ja_instruct.pipelines.sft.cpu_trainer import CpuStepTrainer
from ja_instruct.pipelines.sft.micro_batches import padded

ARRANGEMENTS = {
    "grouped": {"tokens_per_batch": 300},
    "grouped, one sample at a time": {"tokens_per_batch": 256},
    "packed": {"tokens_per_batch": 300, "packing": True},
    "packed into one row": {"tokens_per_batch": 4000, "packing": True},
}
ONE_BATCH_A_STEP = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
ONE_SAMPLE_A_BATCH = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}


def assert_same_training(one, other, rel=1e-4):
    for key in ("loss", "eval_loss", "learning_rate"):
        assert one.curve(key) == pytest.approx(other.curve(key), rel=rel), key
    assert one.metrics["summary"]["train_tokens"] == other.metrics["summary"]["train_tokens"]
    for name, weight in other.weights.items():
        torch.testing.assert_close(one.weights[name], weight, rtol=1e-2, atol=1e-4)


def gradients(trainer):
    """Return those of the first optimizer step's samples, as the trainer accumulates them."""
    trainer.model.train()
    trainer.model.zero_grad()
    batches = iter(trainer.get_train_dataloader())
    accumulated = trainer.args.gradient_accumulation_steps
    chosen, count = trainer.get_batch_samples(batches, accumulated, trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(chosen)
    losses = [trainer.training_step(trainer.model, inputs, count) for inputs in chosen]
    weights = trainer.model.named_parameters()
    return sum(losses).item(), {name: one.grad for name, one in weights if one.requires_grad}


class TestArrangements:
    @pytest.mark.parametrize("completion_only_loss", [False, True])
    def test_loss_curves_are_the_same_step_by_step(self, train_tiny, completion_only_loss):
        changes = {
            "completion_only_loss": completion_only_loss,
            "eval_strategy": "steps",
            "eval_steps": 2,
        }
        padded = train_tiny(**changes)
        losses = padded.curve("loss")
        assert list(losses) == [1, 2, 3, 4]
        assert list(padded.curve("eval_loss")) == [0, 2, 4]
        # there is something to compare
        assert losses[4] < losses[1] - 5
        assert all(weight.abs().max() > 1e-3 for weight in padded.weights.values())
        for arrangement in ARRANGEMENTS.values():
            assert_same_training(train_tiny(**changes, **arrangement), padded)

    def test_completion_only_loss_differs(self, train_tiny):
        whole, answer = (train_tiny(max_steps=1, completion_only_loss=one) for one in (False, True))
        assert abs(whole.curve("loss")[1] - answer.curve("loss")[1]) > 0.01

    def test_gradients_are_the_same(self, trainer_with_adapter):
        loss, expected = gradients(trainer_with_adapter())
        assert all(one.abs().max() > 1e-4 for one in expected.values())
        for arrangement in (*ARRANGEMENTS.values(), ONE_BATCH_A_STEP, ONE_SAMPLE_A_BATCH):
            other, found = gradients(trainer_with_adapter(**arrangement))
            assert other == pytest.approx(loss, rel=1e-5)
            for name, one in found.items():
                torch.testing.assert_close(one, expected[name], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("arrangement", "rows"), [({}, 2), (ARRANGEMENTS["packed into one row"], 1)]
    )
    def test_step_of_one_piece(self, make_trainer, arrangement, rows):
        trainer = make_trainer(**arrangement)
        (piece,) = trainer.pieces(next(iter(trainer.get_train_dataloader())))
        assert len(piece["input_ids"]) == rows

    @pytest.mark.parametrize("packing", [False, True])
    def test_packing_computes_no_padding(self, make_trainer, packing):
        trainer = make_trainer(tokens_per_batch=300, packing=packing)
        batch = next(iter(trainer.get_train_dataloader()))
        tokens = sum(len(sample["input_ids"]) for sample in batch["samples"])
        computed = [piece["input_ids"].numel() for piece in trainer.pieces(batch)]
        assert (sum(computed) == tokens) is packing
        assert len(computed) > 1
        assert max(computed) <= 300

    def test_loss_is_divided_by_the_count_of_all_processes(self, trainer_with_adapter):
        """With several processes the trainer passes the targets of all of them."""
        trainer = trainer_with_adapter(**ARRANGEMENTS["packed"])
        batch = next(iter(trainer.get_train_dataloader()))
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        loss = trainer.training_step(trainer.model, batch, count)
        trainer.accelerator.state.__dict__["num_processes"] = 2
        try:
            half = trainer.training_step(trainer.model, batch, 2 * count)
        finally:
            trainer.accelerator.state.__dict__["num_processes"] = 1
        assert half.item() == pytest.approx(loss.item() / 2, rel=1e-5)


class TestMeasurements:
    @pytest.mark.parametrize("arrangement", [{}, ARRANGEMENTS["packed"]], ids=["padded", "packed"])
    def test_tokens_and_seconds(self, train_tiny, make_trainer, arrangement):
        trained = train_tiny(**arrangement, max_steps=3)
        tokens = sum(len(row["input_ids"]) for row in make_trainer().train_dataset)
        summary = trained.metrics["summary"]
        assert summary["train_tokens"] == trained.curve("tokens")[3] == tokens
        assert summary["train_tokens"] == trained.metrics["train_dataset"]["tokens"]
        seconds = list(trained.curve("seconds").values())
        assert 0 < seconds[0] < seconds[1] < seconds[2]
        # rounded to thousandths where it is logged
        speed = (trained.curve("tokens")[3] - trained.curve("tokens")[2]) / (
            seconds[2] - seconds[1]
        )
        assert trained.curve("tokens_per_second")[3] == pytest.approx(speed, rel=0.1)
        assert "gpu_memory_gb" not in trained.history[-1]

    def test_clock_stops_during_evaluations(self, train_tiny, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        compute, evaluate = CpuStepTrainer._compute_piece, CpuStepTrainer._evaluate_piece

        def compute_for_a_second(self, *args):
            now[0] += 1
            return compute(self, *args)

        def evaluate_for_an_hour(self, *args):
            now[0] += 3600
            return evaluate(self, *args)

        monkeypatch.setattr(CpuStepTrainer, "_compute_piece", compute_for_a_second)
        monkeypatch.setattr(CpuStepTrainer, "_evaluate_piece", evaluate_for_an_hour)
        trained = train_tiny(max_steps=2, eval_strategy="steps", eval_steps=1)
        assert trained.metrics["summary"]["train_seconds"] == 8  # 2 steps of 4 batches


class TestHeldOutLoss:
    @pytest.fixture
    def alone(self, trainer_with_adapter):
        """The mean over tokens, sample by sample, by transformers' own loss."""

        def compute(completion_only_loss):
            trainer = trainer_with_adapter(completion_only_loss=completion_only_loss)
            trainer.model.eval()
            total = count = 0
            for row in trainer.eval_dataset:
                batch = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
                targets = int((batch["labels"][:, 1:] != -100).sum())
                with torch.no_grad():
                    total += trainer.model(**batch).loss.item() * targets
                count += targets
            return total / count

        return compute

    @pytest.mark.parametrize("completion_only_loss", [False, True])
    def test_is_the_mean_over_tokens(self, trainer_with_adapter, alone, completion_only_loss):
        expected = alone(completion_only_loss)
        changes = [{"per_device_eval_batch_size": size} for size in (1, 2, 5)]
        for change in (*changes, *ARRANGEMENTS.values()):
            trainer = trainer_with_adapter(completion_only_loss=completion_only_loss, **change)
            metrics = trainer.evaluate()
            assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
            assert trainer.model.training is False

    def test_without_a_target_there_is_no_loss(self, make_trainer):
        trainer = make_trainer()
        nothing = trainer.eval_dataset.map(lambda row: {"labels": [-100] * len(row["labels"])})
        with pytest.raises(InputError, match="eval_loss is nan"):
            trainer.evaluate(nothing)


BACK_OFF = {"auto_find_batch_size": True}


class MemoryOf:
    """A GPU that runs out of memory above a number of tokens or rows, after the backward pass."""

    def __init__(self, monkeypatch, *, tokens=10**9, rows=10**9, calls=()):
        self.tokens, self.rows, self.calls = tokens, rows, calls
        self.shapes = []
        self.failures = 0
        whole = CpuStepTrainer._compute_piece

        def compute(trainer, model, piece, count):
            loss = whole(trainer, model, piece, count)
            rows, tokens = piece["input_ids"].shape
            self.shapes.append((rows, tokens))
            if rows * tokens > self.tokens or rows > self.rows or len(self.shapes) in self.calls:
                self.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return loss

        monkeypatch.setattr(CpuStepTrainer, "_compute_piece", compute)


class TestOutOfMemory:
    @pytest.fixture
    def undisturbed(self, train_tiny):
        """The training with padded batches and enough memory."""
        return train_tiny()

    @pytest.mark.parametrize("packing", [False, True])
    def test_pieces_are_halved_and_no_step_changes(
        self, train_tiny, undisturbed, monkeypatch, caplog, packing
    ):
        arrangement = {"tokens_per_batch": 1200, "packing": packing}
        gpu = MemoryOf(monkeypatch, tokens=400)
        trained = train_tiny(**arrangement, **BACK_OFF)
        assert gpu.failures >= 1
        assert_same_training(trained, undisturbed)
        assert "sft.training.tokens_per_batch 1200 -> " in caplog.text
        # once what fits is found, nothing is tried again
        late = gpu.shapes[-len(gpu.shapes) // 2 :]
        assert all(rows * tokens <= 400 for rows, tokens in late)

    @pytest.mark.parametrize("fits", [4, 1])
    def test_padded_batches_are_halved_by_samples(self, train_tiny, undisturbed, monkeypatch, fits):
        gpu = MemoryOf(monkeypatch, rows=fits)
        trained = train_tiny(**ONE_BATCH_A_STEP, **BACK_OFF)
        assert gpu.failures == {4: 1, 1: 3}[fits]
        assert_same_training(trained, undisturbed)

    def test_padded_batches_of_any_size_can_be_halved(self, make_trainer):
        trainer = make_trainer()
        for rows in range(1, 10):
            batch = trainer.data_collator([trainer.train_dataset[row] for row in range(rows)])
            for fits in range(1, 10):
                trainer._rows_max = fits
                pieces = trainer.pieces(batch)
                assert all(1 <= len(piece["input_ids"]) <= fits for piece in pieces)
                labels = [row[row != -100] for piece in pieces for row in piece["labels"]]
                assert len(labels) == rows
                assert torch.cat(labels).equal(batch["labels"][batch["labels"] != -100])

    @pytest.mark.parametrize("call", [2, 3, 4, 7])
    def test_earlier_batches_of_the_step_are_computed_again(
        self, train_tiny, undisturbed, monkeypatch, caplog, call
    ):
        """A batch that fails invalidates the accumulated gradients."""
        gpu = MemoryOf(monkeypatch, calls=(call,))
        trained = train_tiny(**BACK_OFF)
        assert gpu.failures == 1
        assert "out of memory: 2 samples at once -> 1" in caplog.text
        assert_same_training(trained, undisturbed)

    @pytest.mark.parametrize("packing", [False, True])
    def test_memory_that_runs_out_twice(self, train_tiny, undisturbed, monkeypatch, packing):
        arrangement = {"tokens_per_batch": 2000, "packing": packing}
        gpu = MemoryOf(monkeypatch, calls=(1, 3))
        trained = train_tiny(**arrangement, **BACK_OFF)
        assert gpu.failures == 2
        assert_same_training(trained, undisturbed)

    @pytest.mark.parametrize(
        "arrangement", [{}, *ARRANGEMENTS.values()], ids=["padded", *ARRANGEMENTS]
    )
    def test_a_single_sample_that_does_not_fit(self, train_tiny, monkeypatch, arrangement):
        MemoryOf(monkeypatch, tokens=50)
        with pytest.raises(InputError, match=r"single sample of \d+ tokens.*sft\.max_seq_length"):
            train_tiny(**arrangement, **BACK_OFF)

    def test_without_back_off_the_error_is_raised(self, train_tiny, monkeypatch):
        gpu = MemoryOf(monkeypatch, rows=1)
        with pytest.raises(torch.OutOfMemoryError):
            train_tiny(auto_find_batch_size=False)
        assert gpu.failures == 1

    def test_nothing_is_retried_in_evaluations(self, train_tiny, monkeypatch):
        """transformers would restart the whole training with the current weights."""
        evaluations = []

        def evaluate(*_):
            evaluations.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        monkeypatch.setattr(CpuStepTrainer, "_evaluate_piece", evaluate)
        with pytest.raises(torch.OutOfMemoryError):
            train_tiny(**BACK_OFF)
        assert len(evaluations) == 1


def test_padded_batch_is_trls_own(make_trainer):
    trainer = make_trainer()
    rows = [trainer.train_dataset[position] for position in range(4)]
    theirs = trainer.data_collator(rows)
    tensors = [{key: torch.tensor(row[key]) for key in ("input_ids", "labels")} for row in rows]
    ours = padded(tensors, trainer._tokenizer.pad_token_id)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.equal(theirs[key])
