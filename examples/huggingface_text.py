"""A Hugging Face text classifier in a loop of one's own, with wrong labels and a few clean texts.

    python examples/huggingface_text.py        # needs transformers; nothing is downloaded

The texts are passages of the descriptions that come with scikit-learn's data sets; the class is whether the data are
measurements (flowers, tumours, wines) or pictures and documents. The network is a tiny BERT made from a configuration,
with random parameters: put your pretrained one and its tokenizer in its place, and nothing else changes.
"""

import re
from functools import partial
from importlib.resources import files

import torch
import torch.nn.functional as F

import steelyard._support._torchvision  # noqa: F401 (transformers imports torchvision, beside a CPU's torch too)
from steelyard import Batch, LearningToReweight, WeightedLoss

MEASUREMENTS = ("breast_cancer", "california_housing", "covtype", "diabetes", "iris", "wine_data")
OTHERS = ("digits", "kddcup99", "lfw", "olivetti_faces", "rcv1", "twenty_newsgroups")
TOKENS = 20


def passages() -> tuple[list[list[str]], torch.Tensor]:
    """Return passages of TOKENS words, and the class of each."""
    found, labels = [], []
    for label, names in enumerate((MEASUREMENTS, OTHERS)):
        for name in names:
            text = (files("sklearn.datasets.descr") / f"{name}.rst").read_text(encoding="utf-8")
            words = re.findall(r"[a-z]+", text.lower())
            passages = [words[start : start + TOKENS] for start in range(0, len(words), TOKENS)]
            found += passages
            labels += [label] * len(passages)
    return found, torch.tensor(labels)


def tokenized(texts: list[list[str]]) -> dict[str, torch.Tensor]:
    """Return what a tokenizer returns: input_ids and attention_mask ``(texts, TOKENS)``; 0 is padding."""
    number = {word: place for place, word in enumerate(sorted({word for text in texts for word in text}), 1)}
    ids = torch.zeros(len(texts), TOKENS, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor([number[word] for word in text])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def main(epochs: int = 8) -> dict[str, float]:
    """Train and print how the labels that are wrong were weighed; return it."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    texts, classes = passages()
    inputs = tokenized(texts)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = int(inputs["input_ids"].max()) + 1
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    train, held = torch.randperm(len(texts)).split([len(texts) - 100, 100])
    wrong = torch.rand(len(train)) < 0.3
    labels = torch.where(wrong, 1 - classes[train], classes[train])
    data = Batch.of({name: values[train] for name, values in inputs.items()}, labels)
    clean = Batch.of({name: values[held] for name, values in inputs.items()}, classes[held])

    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"), outputs="logits")  # calls model(**inputs)
    online = LearningToReweight(model, optimizer, objective, clean)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(16):
            loss = online.loss(data.take(rows))  # before: model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = online.result(data.index).expected_weights
    figures = {"wrong labels": float(weight[wrong].mean()), "right labels": float(weight[~wrong].mean())}
    print(
        f"{len(texts)} passages; mean weight " + ", ".join(f"of {name} {value:.2f}" for name, value in figures.items())
    )
    return figures


if __name__ == "__main__":
    main()
