"""Explanations of a prediction: a heat map over the picture, and a weight for each word of the text.

Pictures: attention rollout where tokens of the whole picture attend to each other (Abnar & Zuidema, ACL 2020,
https://arxiv.org/abs/2005.00928), else Grad-CAM on the last feature map (Selvaraju et al., ICCV 2017,
https://arxiv.org/abs/1610.02391). Texts: integrated gradients from a text of padding (Sundararajan et al., ICML 2017,
https://arxiv.org/abs/1703.01365). Gradient times input costs less, but on a BERT with a solved head it disagreed with
what leaving out the word does to the probability (rank correlation -0.1, integrated gradients 0.5).

Which method a model allows is determined from a forward pass, not from the model's name.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from classifier import Classifier, Sample

# Tokens before those of the picture: a class token; with one for distillation; with four registers; or none.
EXTRA_TOKENS = (1, 2, 5, 0)
# Points between padding and text; 16 instead of 4 raised the rank correlation by at most 0.02.
STEPS = 4
HeatMap = npt.NDArray[np.float32]
Weights = list[tuple[str, float | None]]
Hook = tuple[nn.Module, Callable[..., Any]]


@dataclass(frozen=True)
class Answer:
    """A prediction, and its explanation.

    Attributes:
        scores: probability or value of each output, by its number.
        heat: from 0 to 1 [rows, columns], over the picture as the model sees it; None without a picture.
        words: for each text its pieces in order, with weights from -1 (against the label, or lowers the value) to 1
            (for it, or raises it); white space has the weight None.
    """

    scores: list[float]
    heat: HeatMap | None = None
    words: tuple[Weights, ...] = ()


class Explainer:
    """Predicts and explains samples, both in one pass.

    Attributes:
        method: of the heat map over a picture; None if the model allows none.
        weighs_words: whether words get weights.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._lock = threading.Lock()
        self._model = _with_visible_attention(classifier.model) if classifier.takes_picture else classifier.model
        modules = _modules_of_interest(classifier, self._model)
        self._attention = [module for module, _ in modules.attention]
        self._features = modules.features[-1][0] if modules.features and not modules.attention else None
        # Only a fast tokenizer knows the place of a token in the text.
        self._words = modules.words[0] if modules.words and classifier.tokenizer.is_fast else None
        self.method = "attention rollout" if self._attention else "Grad-CAM" if self._features is not None else None
        self.weighs_words = self._words is not None

    def answer(self, sample: Sample) -> Answer:
        """The scores of `Classifier.scores`, with heat map and words."""
        inputs, tokens = self.classifier.encode([sample])
        target = self.classifier.target
        if self._words is not None and tokens is not None:
            # The text itself, and the points between padding and text.
            inputs = {name: value.repeat_interleave(1 + STEPS, 0) for name, value in inputs.items()}
        leaves: dict[nn.Module, Tensor] = {}
        attention: list[Tensor] = []
        # All requests share the model, and its hooks.
        with self._lock, _hooks(self._recorders(inputs, tokens, leaves, attention)), torch.enable_grad():
            logits = self._model(**inputs).logits
            (scores,) = target.scores(logits.detach()[:1])
            explained = logits[:, target.explained(scores)].sum()
            derivatives = torch.autograd.grad(explained, list(leaves.values())) if leaves else ()
        gradients = dict(zip(leaves, derivatives, strict=True))
        heat = None
        # Of a missing picture or text nothing was recorded.
        if attention:
            heat = rollout(attention, _size(inputs))
        elif self._features in leaves:
            features, slopes = leaves[self._features].detach()[:1], gradients[self._features][:1]
            heat = grad_cam(features, slopes, _size(inputs), both_signs=target.both_signs)
        words: tuple[Weights, ...] = ()
        if self._words in leaves:
            # The points lie on a straight line; from the second to the last it is one step shorter.
            points = leaves[self._words].detach()
            difference = (points[-1] - points[1]) * (STEPS / (STEPS - 1))
            weights = (gradients[self._words][1:].mean(0) * difference).sum(-1)
            words = weigh_words(sample.texts, tokens, weights.cpu().numpy())
        return Answer(scores, heat, words)

    def _recorders(
        self, inputs: dict[str, Tensor], tokens: Any, leaves: dict[nn.Module, Tensor], attention: list[Tensor]
    ) -> list[Hook]:
        """Hooks that record attention, and make other outputs leaves: gradients are computed no further back."""

        def leaf(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            leaves[module] = output.detach().requires_grad_()
            # The next module may change it in place, which autograd forbids for a leaf.
            return leaves[module].clone()

        def words(table: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
            # GPT-2 looks up token types in the same table.
            if not _same(arguments[0], inputs.get("input_ids")):
                return None
            return leaf(table, arguments, self._with_points(output, tokens, table))

        def attend(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
            # Averaged at once: all heads of all layers would take gigabytes for large pictures.
            attention.append(output[1].detach()[0].mean(0))

        hooks: list[Hook] = [(module, attend) for module in self._attention]
        if self._features is not None:
            hooks.append((self._features, leaf))
        if self._words is not None:
            hooks.append((self._words, words))
        return hooks

    def _with_points(self, vectors: Tensor, tokens: Any, table: Any) -> Tensor:
        """The tokens' vectors, and points between padding and them; special tokens stay the same in all points."""
        is_special = [text is None for text in tokens.sequence_ids(0)]
        # Not by calling the table, which would run this hook again.
        padding = table.forward(torch.tensor([self.classifier.tokenizer.pad_token_id], device=vectors.device))
        start = torch.where(torch.tensor(is_special, device=vectors.device)[:, None], vectors[0], padding)
        shares = (torch.arange(STEPS, device=vectors.device)[:, None, None] + 0.5) / STEPS
        return torch.cat([vectors[:1], start + shares * (vectors[:1] - start)])


@dataclass
class _Modules:
    """Modules of interest in the order of their execution; those of pictures with the shapes of their maps.

    Attributes:
        attention: modules with attention over a grid of patches.
        features: modules with feature maps.
        words: tables with a vector for each token.
    """

    attention: list[tuple[nn.Module, torch.Size]] = field(default_factory=list)
    features: list[tuple[nn.Module, torch.Size]] = field(default_factory=list)
    words: list[nn.Module] = field(default_factory=list)


def _with_visible_attention(model: Any) -> Any:
    """A second model with the same weights that returns its attention; fused kernels do not."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    copied.set_attn_implementation("eager")
    return copied


def _modules_of_interest(classifier: Classifier, model: Any) -> _Modules:
    """From a forward pass; from two, if a sample has picture and text: maps over a picture keep their shape in both."""
    modules = _modules_of_one_pass(classifier, model, "one two three four five")
    if classifier.takes_picture and classifier.takes_text:
        other = _modules_of_one_pass(classifier, model, "one")
        modules.attention = [module for module in modules.attention if module in other.attention]
        modules.features = [module for module in modules.features if module in other.features]
    if len({shape for _, shape in modules.attention}) > 1:
        # Windows that shift and merge: rollout cannot multiply their attention.
        modules.attention = []
    return modules


def _modules_of_one_pass(classifier: Classifier, model: Any, text: str) -> _Modules:
    picture = Image.new("RGB", (64, 64), "white") if classifier.takes_picture else None
    inputs, _ = classifier.encode([Sample(picture, (text,) * classifier.texts)])
    modules = _Modules()

    def record(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(module, nn.Embedding) and _same(arguments[0], inputs.get("input_ids")):
            modules.words.append(module)
        if picture is None:
            return
        if isinstance(output, tuple) and len(output) > 1 and _is_attention(output[1], _size(inputs)):
            modules.attention.append((module, output[1].shape))
        if isinstance(output, Tensor) and _feature_map(output, _size(inputs)) is not None:
            modules.features.append((module, output.shape))

    # Submodules finish before their parents: the last one recorded is the closest to the head.
    with _hooks((module, record) for module in model.modules()), torch.no_grad():
        model(**inputs)
    return modules


@contextmanager
def _hooks(pairs: Iterable[Hook]) -> Iterator[None]:
    with ExitStack() as handles:
        for module, hook in pairs:
            handles.enter_context(module.register_forward_hook(hook))
        yield


def _size(inputs: dict[str, Tensor]) -> tuple[int, int]:
    """Height and width of the pictures."""
    height, width = inputs["pixel_values"].shape[-2:]
    return height, width


def _same(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _is_attention(tensor: Any, size: tuple[int, int]) -> bool:
    """Whether it is the attention between all tokens of one picture: [1, heads, tokens, tokens]."""
    square = isinstance(tensor, Tensor) and tensor.ndim == 4 and len(tensor) == 1 and tensor.shape[2] == tensor.shape[3]
    return square and grid_of(tensor.shape[2], size) is not None


def _feature_map(tensor: Tensor, size: tuple[int, int]) -> Tensor | None:
    """The features of one picture as [channels, rows, columns]; None if the tensor is no such map."""
    if tensor.ndim == 4 and len(tensor) == 1 and min(tensor.shape[2:]) > 1:
        return tensor[0]
    if tensor.ndim == 3 and len(tensor) == 1 and (grid := grid_of(tensor.shape[1], size)) is not None:
        extra, rows, columns = grid
        return tensor[0, extra:].T.reshape(-1, rows, columns)
    return None


def grid_of(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """The grid of the tokens of a picture of that height and width: extra tokens before it, rows, columns."""
    height, width = size
    for extra in EXTRA_TOKENS:
        rows = round(((tokens - extra) * height / width) ** 0.5) if tokens > extra + 1 else 0
        if rows > 1 and (tokens - extra) % rows == 0 and rows * width == (tokens - extra) // rows * height:
            return extra, rows, (tokens - extra) // rows
    return None


def rollout(attention: list[Tensor], size: tuple[int, int]) -> HeatMap:
    """How much each patch contributes to the class token, or to all tokens if there is none.

    Args:
        attention: of each layer, averaged over its heads [tokens, tokens].
        size: height and width of the picture.
    """
    grid = grid_of(len(attention[0]), size)
    assert grid is not None
    extra, rows, columns = grid
    rolled = torch.eye(len(attention[0]), device=attention[0].device)
    for layer in attention:
        # The residual connection counts as half.
        rolled = (layer + torch.eye(len(layer), device=layer.device)) / 2 @ rolled
    row = rolled[0] if extra else rolled.mean(0)
    return _from_0_to_1(row[extra:].reshape(rows, columns))


def grad_cam(features: Tensor, gradients: Tensor, size: tuple[int, int], *, both_signs: bool = False) -> HeatMap:
    """Evidence for an output: features weighted by their mean gradients.

    Args:
        features: of a picture.
        gradients: of the output.
        size: height and width of the picture.
        both_signs: of negative sums the size counts, which is what lowers a value; otherwise they are left out.
    """
    maps, slopes = _feature_map(features, size), _feature_map(gradients, size)
    assert maps is not None
    assert slopes is not None
    sums = (maps * slopes.mean((1, 2), keepdim=True)).sum(0)
    return _from_0_to_1(sums.abs() if both_signs else sums.clamp(min=0))


def _from_0_to_1(heat: Tensor) -> HeatMap:
    heat = heat - heat.min()
    scaled: HeatMap = (heat / heat.max().clamp(min=1e-12)).float().cpu().numpy()
    return scaled


def weigh_words(texts: tuple[str, ...], tokens: Any, weights: npt.NDArray[np.float32]) -> tuple[Weights, ...]:
    """Pieces of each text with their weights, scaled so that the strongest is 1 or -1; a word has one weight.

    Args:
        texts: of the sample.
        tokens: what the tokenizer returned for them.
        weights: of each token.
    """
    encoding = tokens.encodings[0]
    places = zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, weights.tolist(), strict=False)
    sums: dict[tuple[int, int], tuple[int, int, float]] = {}
    for text, word, (start, end), weight in places:
        if text is None or word is None or start == end:
            continue
        first, last, total = sums.get((text, word), (start, end, 0.0))
        sums[text, word] = (min(first, start), max(last, end), total + weight)
    strongest = max((abs(total) for _, _, total in sums.values()), default=0.0) or 1.0
    pieces: list[Weights] = [[] for _ in texts]
    done = [0] * len(texts)
    for (text, _), (first, last, total) in sorted(sums.items()):
        start = max(first, done[text])
        pieces[text] += [(texts[text][done[text] : start], None), (texts[text][start:last], total / strongest)]
        done[text] = max(done[text], last)
    for number, text in enumerate(texts):
        pieces[number].append((text[done[number] :], None))
    return tuple([(piece, weight) for piece, weight in of_text if piece] for of_text in pieces)
