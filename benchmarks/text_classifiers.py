"""What people would use instead on texts: `transformers.Trainer` by a script, and AutoGluon.

    python -m benchmarks.text_classifiers trainer JSON
    AUTOGLUON_PYTHON benchmarks/text_classifiers.py autogluon JSON

JSON has the settings of `Task`. The figures are printed in the last line: see `figures`. AutoGluon has an environment
of its own, so this file imports nothing of ours.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

# In a batch of evaluation; both train on `batch` texts.
EVALUATION_BATCH = 64


class Task(NamedTuple):
    """What is learned from what.

    Attributes:
        data: a folder with train.csv, validation.csv and test.csv, of columns text and label.
        model: the folder of a pretrained encoder, whose tokens are averaged.
        length: tokens of a text at most.
        batch: texts in a step.
        seed: of head and order.
        learning_rate: of Trainer.
        epochs: of Trainer.
    """

    data: str
    model: str
    length: int
    batch: int
    seed: int
    learning_rate: float
    epochs: int

    def split(self, name: str) -> pandas.DataFrame:
        """The rows of train, validation or test."""
        return pandas.read_csv(Path(self.data) / f"{name}.csv")


def figures(predicted: Any, test: pandas.DataFrame, validation: float) -> dict[str, Any]:
    """Accuracy on the test split, which answers were right, and the accuracy on validation by which was chosen."""
    right = np.asarray(predicted) == test["label"].to_numpy()
    packed = np.packbits(right).tobytes().hex()
    return {"accuracy": float(right.mean()), "test_rows": len(right), "right": packed, "validation": validation}


def trainer(task: Task) -> dict[str, Any]:
    """Fine-tune all layers with `transformers.Trainer`: the mean of the tokens, the best epoch on validation."""
    import torch
    from torch import nn
    from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    set_seed(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    train, validation, test = (task.split(name) for name in ("train", "validation", "test"))
    classes = sorted(train["label"].unique())

    class MeanClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = AutoModel.from_pretrained(task.model)
            self.dropout = nn.Dropout(0.1)
            self.head = nn.Linear(self.backbone.config.hidden_size, len(classes))

        def forward(self, labels: torch.Tensor, **tokens: torch.Tensor) -> dict[str, torch.Tensor]:
            states = self.backbone(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            logits = self.head(self.dropout((states * mask).sum(1) / mask.sum(1)))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    def rows(frame: pandas.DataFrame) -> list[dict[str, Any]]:
        tokens = tokenizer(frame["text"].tolist(), truncation=True, max_length=task.length)
        return [
            {**{name: tokens[name][row] for name in tokens}, "labels": classes.index(label)}
            for row, label in enumerate(frame["label"])
        ]

    def accuracy(answered: Any) -> dict[str, float]:
        return {"accuracy": float((answered.predictions.argmax(-1) == answered.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=task.epochs, learning_rate=task.learning_rate, seed=task.seed,
            per_device_train_batch_size=task.batch, per_device_eval_batch_size=EVALUATION_BATCH, warmup_steps=0.1,
            weight_decay=0.01, train_sampling_strategy="group_by_length", eval_strategy="epoch", save_strategy="epoch",
            save_total_limit=1, save_only_model=True, load_best_model_at_end=True, metric_for_best_model="accuracy",
            report_to="none", use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False,
        )  # fmt: skip
        fitted: Any = Trainer(
            MeanClassifier(), arguments, train_dataset=rows(train), eval_dataset=rows(validation),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )  # fmt: skip
        fitted.train()
        # Trainer also groups what it predicts: answers would be in another order than the rows.
        fitted.args.train_sampling_strategy = "sequential"
        answered = fitted.predict(rows(test))
        best = fitted.state.best_metric
    assert best is not None, "no epoch was evaluated"
    names = np.array(classes)
    assert (names[answered.label_ids] == test["label"]).all(), "answers are not in the order of the rows"
    return figures(names[answered.predictions.argmax(-1)], test, best)


def autogluon(task: Task) -> dict[str, Any]:
    """Train AutoGluon's MultiModalPredictor as it is by default, but for the encoder, its pooling and its length."""
    import torch

    # A torchvision that was not made for this torch lacks these operators, and then cannot be imported.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    from autogluon.multimodal import MultiModalPredictor

    train, validation, test = (task.split(name) for name in ("train", "validation", "test"))
    with tempfile.TemporaryDirectory() as folder:
        predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=folder, verbosity=1)
        predictor.fit(
            train, tuning_data=validation, seed=task.seed,
            hyperparameters={
                "model.names": ["hf_text"],
                "model.hf_text.checkpoint_name": task.model,
                "model.hf_text.pooling_mode": "mean",
                "model.hf_text.max_text_len": task.length,
                "env.num_gpus": 0,
                "env.num_workers": 0,
                "env.num_workers_inference": 0,
                "env.precision": "32-true",
            },
        )  # fmt: skip
        chosen_by = float(predictor.evaluate(validation, metrics=["accuracy"])["accuracy"])
        return figures(predictor.predict(test), test, chosen_by)


if __name__ == "__main__":
    _, name, settings = sys.argv
    done = {"trainer": trainer, "autogluon": autogluon}[name](Task(**json.loads(settings)))
    print(f"\n{json.dumps(done)}")
