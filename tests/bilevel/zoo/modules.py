"""Every public module class of `torch.nn`, in a small model each; those left out, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.bilevel.zoo.case import CLASSES, FEATURES, SAMPLES, Case, Shell, classes

__all__ = ["EXCLUDED", "module_cases", "public_modules"]

EXCLUDED = {
    "Module": "the base class, without a forward of its own",
    "Container": "the deprecated name of Module",
    "RNNBase": "the base class of RNN, LSTM and GRU",
    "RNNCellBase": "the base class of the cells, without a forward of its own",
    "DataParallel": "needs several GPUs",
    "NLLLoss2d": "the deprecated name of NLLLoss",
}


def public_modules() -> set[str]:
    """Return the names of all module classes that `torch.nn` hands out, in this version of torch."""
    found = set(nn.modules.__all__) | set(dir(nn)) | set(dir(nn.modules))
    return {name for name in found if not name.startswith("_") and _is_module(getattr(nn, name, None))}


def _is_module(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


Made = Callable[[], nn.Module]
Call = Callable[[Any, Tensor], Tensor]
Entry = tuple[Made, tuple[int, ...]] | tuple[Made, tuple[int, ...], Call]


def first(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)[0]


def time_first(module: nn.Module, x: Tensor) -> Tensor:
    return module(x.transpose(0, 1))[0].transpose(0, 1)


def halves(module: nn.Module, x: Tensor) -> Tensor:
    return module(*x.chunk(2, 1))


def itself(module: nn.Module, x: Tensor) -> Tensor:
    """Attention: queries, keys and values are the same."""
    return module(x, x, x)[0]


def masked(module: nn.Module, x: Tensor) -> Tensor:
    length = x.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    return module(x, x, x, attn_mask=hidden, need_weights=False)[0]


def memory(module: nn.Module, x: Tensor) -> Tensor:
    """A decoder's target and memory."""
    return module(x, x.flip(1))


def pair(module: nn.Module, x: Tensor) -> Tensor:
    """A cell's state, from the input and from the state before."""
    state = module(x[:, 0])
    return module(x[:, 1], state)


def cell_pair(module: nn.Module, x: Tensor) -> Tensor:
    state = module(x[:, 0])
    return torch.cat(module(x[:, 1], state), 1)


class Unpooled(nn.Module):
    """A pooling layer with indices, and the module under test that undoes it."""

    def __init__(self, pool: nn.Module, unpool: nn.Module) -> None:
        super().__init__()
        self.pool, self.unpool = pool, unpool

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


class Listed(nn.Module):
    """Modules and parameters in the containers that have no forward of their own."""

    def __init__(self, container: nn.Module) -> None:
        super().__init__()
        self.container = container

    def forward(self, x: Tensor) -> Tensor:
        own = self.container
        if isinstance(own, nn.ModuleList):
            return own[1](torch.tanh(own[0](x)))
        if isinstance(own, nn.ModuleDict):
            return own["b"](torch.tanh(own["a"](x)))
        if isinstance(own, nn.ParameterList):
            return torch.tanh(x @ own[0]) + own[1]
        return torch.tanh(x @ own["a"]) + own["b"]


def adaptive_pool(kind: str, d: int) -> Entry:
    return partial(getattr(nn, f"Adaptive{kind}Pool{d}d"), 2), (2, *(3,) * d)


def pad(name: str, d: int) -> Entry:
    size = (1,) * (2 * d)
    module = partial(getattr(nn, name), size, 0.7) if name.startswith("Constant") else partial(getattr(nn, name), size)
    return module, (1, *(2,) * d)


def activation(name: str, *args: Any, **kw: Any) -> Entry:
    return partial(getattr(nn, name), *args, **kw), (4,)


def frozen(module: nn.Module) -> nn.Module:
    """A module whose forward does not know of training mode any more."""
    module.train = lambda mode=True: nn.Module.train(module, False)  # type: ignore[method-assign]
    return module.eval()


def lived(module: nn.Module) -> nn.Module:
    """Running statistics of some batches, not those of the start."""
    for _ in range(3):
        module(torch.randn(SAMPLES, *((2, 3, 3) if isinstance(module, nn.BatchNorm2d) else (4,))) + 0.3)
    return module


def transformer_layer(kind: type, **kw: Any) -> nn.Module:
    return kind(d_model=4, nhead=2, dim_feedforward=4, batch_first=True, **kw)


_ONE = {1: (2, 5), 2: (2, 3, 3), 3: (1, 3, 3, 3)}


def _entries() -> Iterator[tuple[str, Entry]]:
    for d in (1, 2, 3):
        channels, *_ = _ONE[d]
        yield f"Conv{d}d", (partial(getattr(nn, f"Conv{d}d"), channels, 2, 2), _ONE[d])
        yield f"LazyConv{d}d", (partial(getattr(nn, f"LazyConv{d}d"), 2, 2), _ONE[d])
        yield f"ConvTranspose{d}d", (partial(getattr(nn, f"ConvTranspose{d}d"), channels, 2, 2), (channels, *(2,) * d))
        yield f"LazyConvTranspose{d}d", (partial(getattr(nn, f"LazyConvTranspose{d}d"), 2, 2), (channels, *(2,) * d))
        yield f"BatchNorm{d}d", (partial(getattr(nn, f"BatchNorm{d}d"), channels), _ONE[d])
        yield f"LazyBatchNorm{d}d", (getattr(nn, f"LazyBatchNorm{d}d"), _ONE[d])
        yield f"InstanceNorm{d}d", (partial(getattr(nn, f"InstanceNorm{d}d"), channels, affine=True), _ONE[d])
        yield f"LazyInstanceNorm{d}d", (partial(getattr(nn, f"LazyInstanceNorm{d}d"), affine=True), _ONE[d])
        yield f"AvgPool{d}d", (partial(getattr(nn, f"AvgPool{d}d"), 2, 1), _ONE[d])
        yield f"MaxPool{d}d", (partial(getattr(nn, f"MaxPool{d}d"), 2, 1), _ONE[d])
        yield f"LPPool{d}d", (partial(getattr(nn, f"LPPool{d}d"), 2, 2, 1), _ONE[d])
        yield f"AdaptiveAvgPool{d}d", adaptive_pool("Avg", d)
        yield f"AdaptiveMaxPool{d}d", adaptive_pool("Max", d)
        for name in ("CircularPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad"):
            yield f"{name}{d}d", pad(f"{name}{d}d", d)
        yield f"Dropout{d}d", (partial(getattr(nn, f"Dropout{d}d"), 0.4), _ONE[d])
        pool = partial(getattr(nn, f"MaxPool{d}d"), 2, return_indices=True)
        unpool = getattr(nn, f"MaxUnpool{d}d")
        yield f"MaxUnpool{d}d", (lambda pool=pool, unpool=unpool: Unpooled(pool(), unpool(2)), (1, *(4, 4, 2)[:d]))
    yield "FractionalMaxPool2d", (partial(nn.FractionalMaxPool2d, 2, output_size=2), (1, 4, 4))
    yield "FractionalMaxPool3d", (partial(nn.FractionalMaxPool3d, 2, output_size=2), (1, 4, 4, 4))

    for name in ("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish"):
        yield name, activation(name)
    for name in ("PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh"):
        yield name, activation(name)
    for name in ("Tanhshrink", "Identity", "GLU"):
        yield name, activation(name)
    yield "Hardshrink", activation("Hardshrink", 0.2)
    yield "Softshrink", activation("Softshrink", 0.2)
    yield "Threshold", activation("Threshold", 0.1, 0.3)
    for name in ("Softmax", "Softmin", "LogSoftmax"):
        yield name, activation(name, dim=1)
    yield "Softmax2d", (nn.Softmax2d, (2, 2, 2))
    for name in ("Dropout", "AlphaDropout"):
        yield name, activation(name, 0.4)
    yield "FeatureAlphaDropout", (partial(nn.FeatureAlphaDropout, 0.4), (2, 2, 2))

    yield "Linear", (partial(nn.Linear, 4, 4), (4,))
    yield "LazyLinear", (partial(nn.LazyLinear, 4), (4,))
    yield "Bilinear", (partial(nn.Bilinear, 2, 2, 3), (4,), halves)
    yield "CosineSimilarity", (nn.CosineSimilarity, (8,), halves)
    yield "PairwiseDistance", (nn.PairwiseDistance, (8,), halves)
    yield "ChannelShuffle", (partial(nn.ChannelShuffle, 2), (4, 2, 2))
    yield "PixelShuffle", (partial(nn.PixelShuffle, 2), (4, 2, 2))
    yield "PixelUnshuffle", (partial(nn.PixelUnshuffle, 2), (1, 4, 4))
    yield "Flatten", (nn.Flatten, (2, 2))
    yield "Unflatten", (partial(nn.Unflatten, 1, (2, 2)), (4,))
    yield "Fold", (partial(nn.Fold, (3, 3), 2), (4, 4))
    yield "Unfold", (partial(nn.Unfold, 2), (1, 3, 3))
    yield "Upsample", (partial(nn.Upsample, scale_factor=2, mode="bicubic"), (1, 3, 3))
    yield "UpsamplingBilinear2d", (partial(nn.UpsamplingBilinear2d, scale_factor=2), (1, 3, 3))
    yield "UpsamplingNearest2d", (partial(nn.UpsamplingNearest2d, scale_factor=2), (1, 3, 3))

    yield "GroupNorm", (partial(nn.GroupNorm, 2, 4), (4, 3))
    yield "LayerNorm", (partial(nn.LayerNorm, 4), (4,))
    yield "RMSNorm", (partial(nn.RMSNorm, 4), (4,))
    yield "LocalResponseNorm", (partial(nn.LocalResponseNorm, 2, alpha=0.5), (4, 2, 2))
    yield "CrossMapLRN2d", (partial(nn.CrossMapLRN2d, 3, alpha=0.5), (4, 2, 2))
    yield "SyncBatchNorm", (partial(nn.SyncBatchNorm, 2), (2, 3))

    for name in ("RNN", "LSTM", "GRU"):
        yield name, (partial(getattr(nn, name), 2, 3, batch_first=True), (3, 2), first)
    yield "RNNCell", (partial(nn.RNNCell, 2, 3), (2, 2), pair)
    yield "GRUCell", (partial(nn.GRUCell, 2, 3), (2, 2), pair)
    yield "LSTMCell", (partial(nn.LSTMCell, 2, 3), (2, 2), cell_pair)
    yield "MultiheadAttention", (partial(nn.MultiheadAttention, 4, 2, batch_first=True), (3, 4), itself)
    layer = partial(transformer_layer, nn.TransformerEncoderLayer)
    yield "TransformerEncoderLayer", (layer, (3, 4))
    yield (
        "TransformerEncoder",
        (lambda: nn.TransformerEncoder(layer(dropout=0.0), 2, enable_nested_tensor=False), (3, 4)),
    )
    decoder = partial(transformer_layer, nn.TransformerDecoderLayer)
    yield "TransformerDecoderLayer", (decoder, (3, 4), memory)
    yield "TransformerDecoder", (lambda: nn.TransformerDecoder(decoder(dropout=0.0), 2), (3, 4), memory)
    yield (
        "Transformer",
        (
            partial(transformer_layer, nn.Transformer, num_encoder_layers=1, num_decoder_layers=1, dropout=0.1),
            (3, 4),
            memory,
        ),
    )

    yield "Sequential", (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), (4,))
    yield "ModuleList", (lambda: Listed(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])), (4,))
    yield "ModuleDict", (lambda: Listed(nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)})), (4,))
    yield "ParameterList", (lambda: Listed(nn.ParameterList([torch.randn(4, 3), torch.randn(3)])), (4,))
    yield "ParameterDict", (lambda: Listed(nn.ParameterDict({"a": torch.randn(4, 3), "b": torch.randn(3)})), (4,))


def _variants() -> Iterator[tuple[str, str, Entry]]:
    """Options that change what is computed: (class, option, entry)."""
    for mode in ("reflect", "replicate", "circular"):
        yield "Conv2d", f"padding {mode}", (partial(nn.Conv2d, 2, 2, 3, padding=1, padding_mode=mode), (2, 3, 3))
    yield "Conv1d", "groups, stride, dilation", (partial(nn.Conv1d, 2, 4, 2, 2, 1, 2, groups=2), (2, 6))
    yield "Conv2d", "same, no bias", (partial(nn.Conv2d, 2, 2, 3, padding="same", bias=False), (2, 3, 3))
    yield (
        "ConvTranspose2d",
        "groups, output padding",
        (partial(nn.ConvTranspose2d, 2, 2, 2, 2, 1, output_padding=1, groups=2), (2, 2, 2)),
    )
    yield "BatchNorm1d", "momentum None", (partial(nn.BatchNorm1d, 4, momentum=None), (4,))
    yield "BatchNorm1d", "not affine", (partial(nn.BatchNorm1d, 4, affine=False), (4,))
    yield "BatchNorm1d", "no running statistics", (partial(nn.BatchNorm1d, 4, track_running_stats=False), (4,))
    yield "BatchNorm1d", "in eval mode", (lambda: frozen(lived(nn.BatchNorm1d(4))), (4,))
    yield (
        "BatchNorm2d",
        "in eval mode, trained weights",
        (lambda: frozen(lived(nn.BatchNorm2d(2))), (2, 3, 3)),
    )
    yield "InstanceNorm1d", "running statistics", (partial(nn.InstanceNorm1d, 2, track_running_stats=True), (2, 5))
    yield "InstanceNorm2d", "plain", (partial(nn.InstanceNorm2d, 2), (2, 3, 3))
    yield "GroupNorm", "not affine", (partial(nn.GroupNorm, 1, 4, affine=False), (4, 3))
    yield "LayerNorm", "two axes, no bias", (partial(nn.LayerNorm, (2, 3), bias=False), (2, 3))
    yield "MaxPool2d", "dilation, padding, ceil", (partial(nn.MaxPool2d, 2, 1, 1, 2, ceil_mode=True), (1, 4, 4))
    yield (
        "AvgPool2d",
        "not counting padding",
        (partial(nn.AvgPool2d, 2, 2, 1, count_include_pad=False, ceil_mode=True), (1, 3, 3)),
    )
    yield "AvgPool3d", "divisor", (partial(nn.AvgPool3d, 2, 1, divisor_override=3), (1, 3, 3, 3))
    yield "LPPool1d", "norm 3", (partial(nn.LPPool1d, 3, 2, 1), (2, 5), lambda module, x: module(x.exp()))
    yield "GELU", "tanh", activation("GELU", approximate="tanh")
    yield "ELU", "in place", activation("ELU", inplace=True)
    yield "ReLU", "in place", activation("ReLU", inplace=True)
    yield "Softplus", "threshold inside", activation("Softplus", 2.0, 0.5)
    yield "PReLU", "a slope a channel", activation("PReLU", 4)
    yield "Dropout", "in place", activation("Dropout", 0.4, inplace=True)
    yield "RReLU", "in place", activation("RReLU", inplace=True)
    yield "Bilinear", "with itself", (partial(nn.Bilinear, 4, 4, 3), (4,), lambda module, x: module(x, x))
    yield "PairwiseDistance", "norm 1", (partial(nn.PairwiseDistance, 1.0), (8,), halves)
    yield "PairwiseDistance", "norm 3", (partial(nn.PairwiseDistance, 3.0, keepdim=True), (8,), halves)
    for mode in ("nearest", "nearest-exact", "bilinear", "area"):
        yield "Upsample", mode, (partial(nn.Upsample, size=(4, 5), mode=mode), (1, 3, 3))
    yield "Upsample", "trilinear", (partial(nn.Upsample, size=(3, 3, 3), mode="trilinear"), (1, 2, 2, 2))
    yield "Upsample", "linear, corners", (partial(nn.Upsample, size=5, mode="linear", align_corners=True), (1, 3))
    for name in ("RNN", "LSTM", "GRU"):
        two = partial(getattr(nn, name), 2, 2, 2, bidirectional=True)
        yield name, "two layers, both ways, time first", (two, (3, 2), time_first)
        yield name, "dropout", (partial(getattr(nn, name), 2, 2, 2, dropout=0.4, batch_first=True), (3, 2), first)
    yield "RNN", "relu", (partial(nn.RNN, 2, 3, nonlinearity="relu", batch_first=True), (3, 2), first)
    yield "LSTM", "projection", (partial(nn.LSTM, 2, 3, proj_size=2, batch_first=True), (3, 2), first)
    yield (
        "LSTM",
        "cell state",
        (
            partial(nn.LSTM, 2, 3, batch_first=True),
            (3, 2),
            lambda module, x: torch.cat(module(x)[1]).transpose(0, 1),
        ),
    )
    attention = partial(nn.MultiheadAttention, 4, 2, batch_first=True)
    yield "MultiheadAttention", "causal, no weights", (attention, (3, 4), masked)
    yield "MultiheadAttention", "dropout", (partial(attention, dropout=0.3), (3, 4), itself)
    yield (
        "MultiheadAttention",
        "added keys, other widths",
        (
            partial(attention, add_bias_kv=True, add_zero_attn=True, kdim=2, vdim=2),
            (3, 4),
            lambda module, x: module(x, x[..., :2].contiguous(), x[..., 2:].contiguous(), need_weights=False)[0],
        ),
    )
    first_norm = partial(transformer_layer, nn.TransformerEncoderLayer, norm_first=True, activation="gelu")
    yield "TransformerEncoderLayer", "norm first, gelu", (first_norm, (3, 4))
    yield (
        "TransformerEncoderLayer",
        "padded",
        (
            partial(transformer_layer, nn.TransformerEncoderLayer, dropout=0.0),
            (3, 4),
            lambda module, x: module(x, src_key_padding_mask=torch.tensor([[False, False, True]] * len(x))),
        ),
    )


class Words(nn.Module):
    """Rows of a table, pooled, to a linear head; the inputs are ids."""

    def __init__(self, table: nn.Module, width: int = 4, call: Call | None = None) -> None:
        super().__init__()
        self.table, self.head, self.call = table, nn.Linear(width, CLASSES), call

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh((self.call or _rows)(self.table, ids)))


def _rows(table: nn.Module, ids: Tensor) -> Tensor:
    found = table(ids)
    return found if found.ndim == 2 else found.mean(1)


def _in_bags(table: nn.Module, ids: Tensor) -> Tensor:
    return table(ids.reshape(-1), torch.arange(0, ids.numel(), ids.shape[1]))


class WeightedBag(nn.Module):
    """Per-sample weights of an EmbeddingBag from a second table, so that they are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.scale = nn.EmbeddingBag(7, 4, mode="sum"), nn.Embedding(7, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids, per_sample_weights=self.scale(ids).squeeze(2))


def _tables() -> Iterator[tuple[str, str, Callable[[], nn.Module]]]:
    yield "Embedding", "", lambda: Words(nn.Embedding(7, 4))
    yield "Embedding", "padding row", lambda: Words(nn.Embedding(7, 4, padding_idx=2))
    yield "EmbeddingBag", "", lambda: Words(nn.EmbeddingBag(7, 4))
    yield "EmbeddingBag", "sum", lambda: Words(nn.EmbeddingBag(7, 4, mode="sum"))
    yield "EmbeddingBag", "max", lambda: Words(nn.EmbeddingBag(7, 4, mode="max"))
    yield "EmbeddingBag", "padding row", lambda: Words(nn.EmbeddingBag(7, 4, padding_idx=2))
    yield "EmbeddingBag", "offsets", lambda: Words(nn.EmbeddingBag(7, 4, mode="sum"), call=_in_bags)
    yield "EmbeddingBag", "weighted", lambda: Words(WeightedBag())


class Scored(nn.Module):
    """A module that needs the targets: they come as the last column of the inputs, and losses leave it."""

    def __init__(self, module: nn.Module, width: int, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.front, self.module, self.call = nn.Linear(FEATURES - 1, width), module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, torch.tanh(self.front(x[:, :-1])), x[:, -1].long())


def _scored_inputs(generator: torch.Generator, rows: int) -> Tensor:
    labels = torch.randint(0, 6, (rows, 1), generator=generator)
    return torch.cat([torch.randn(rows, FEATURES - 1, generator=generator), labels.float()], 1)


def _as_it_is(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs


def _scored() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    def adaptive(module: nn.Module, h: Tensor, labels: Tensor) -> Tensor:
        return -module(h, labels).output

    yield (
        "AdaptiveLogSoftmaxWithLoss",
        lambda: Scored(nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], 2.0, head_bias=True), 4, adaptive),
    )
    if hasattr(nn, "LinearCrossEntropyLoss"):  # of torch 2.13
        yield (
            "LinearCrossEntropyLoss",
            lambda: Scored(
                nn.LinearCrossEntropyLoss(4, 6, reduction="none"), 4, lambda module, h, labels: module(h, labels)
            ),
        )


ANOTHER_BACKWARD = {"CrossMapLRN2d"}
"""Modules of torch whose backward pass is not the derivative of their value (off by 8 % here)."""


def module_cases() -> list[Case]:
    """Return the cases of all modules but the losses without parameters, which are in `losses`."""
    entries = [(name, name, entry) for name, entry in _entries()]
    entries += [(name, f"{name} ({option})", entry) for name, option, entry in _variants()]
    found = [
        Case(
            label, name, partial(_shell, *entry), predicts=name not in ANOTHER_BACKWARD, field=name in ANOTHER_BACKWARD
        )
        for name, label, entry in entries
    ]
    for name, option, make in _tables():
        label = f"{name} ({option})" if option else name
        found.append(Case(label, name, make, inputs=classes(7, 3)))
    found += [Case(name, name, make, _as_it_is, _scored_inputs) for name, make in _scored()]
    return found


def _shell(make: Made, shape: tuple[int, ...], call: Call | None = None) -> nn.Module:
    return Shell(make(), shape, call)
