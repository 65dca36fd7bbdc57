"""Where the model looked: a map over the picture, and a weight for each word of the text.

Pictures: attention rollout where tokens of the whole picture attend to each other (Abnar & Zuidema, ACL 2020,
https://arxiv.org/abs/2005.00928), else Grad-CAM on the last map of features (Selvaraju et al., ICCV 2017,
https://arxiv.org/abs/1610.02391). Texts: integrated gradients from a text of padding (Sundararajan et al., ICML 2017,
https://arxiv.org/abs/1703.01365). Gradient times input costs less, but on a BERT with a solved head it went against
what leaving the word out does to the answer (rank correlation -0.1, integrated 0.5).

Which of them a model can have is found by looking at one forward pass, not by the model's name.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from classifier import Classifier, Question

# Tokens in front of those of the picture: a class token, one more for distillation, or four registers; or none.
EXTRA_TOKENS = (1, 2, 5, 0)
# Points on the way from padding to the text; 16 in place of 4 brought no more than 0.02 of that correlation.
STEPS = 4
HeatMap = npt.NDArray[np.float32]
Weights = list[tuple[str, float | None]]
Hook = tuple[nn.Module, Callable[..., Any]]


@dataclass(frozen=True)
class Answer:
    """What the model says of a question, and what it looked at.

    Attributes:
        scores: probability of each label, by class number.
        heat: from 0 to 1 [rows, columns], over the picture as the model sees it; None without one.
        words: for each text its pieces in order, with weights from -1, against the label, to 1, for it; None is blank.
    """

    scores: list[float]
    heat: HeatMap | None = None
    words: tuple[Weights, ...] = ()


class Explainer:
    """Answers questions together with what the model looked at, in one pass.

    Attributes:
        method: how the map over a picture is made; None if this model offers no way.
        weighs_words: whether words get weights.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self._lock = threading.Lock()
        self._model = _with_visible_attention(classifier.model) if classifier.takes_picture else classifier.model
        seen = _look(classifier, self._model)
        self._attention = [name for name, _ in seen.attention]
        self._features = seen.features[-1][0] if seen.features and not seen.attention else None
        # Only a fast tokenizer knows where in the text a token is from.
        self._words = seen.words[0][0] if seen.words and classifier.tokenizer.is_fast else None
        self.method = "attention rollout" if self._attention else "Grad-CAM" if self._features else None
        self.weighs_words = self._words is not None

    def answer(self, question: Question) -> Answer:
        """Probabilities as `Classifier.probabilities` has them, with heat map and words."""
        inputs, tokens = self.classifier.encode([question])
        size = _size(inputs) if "pixel_values" in inputs else (0, 0)
        if self._words and tokens is not None:
            # The text itself, and the points on the way to it.
            inputs = {name: value.repeat_interleave(1 + STEPS, 0) for name, value in inputs.items()}
        leaves: dict[str, Tensor] = {}
        attention: list[Tensor] = []
        # Hooks belong to the model, and so to all requests.
        with (
            self._lock,
            _hooks(self._cut(inputs, tokens, leaves)),
            _hooks(self._record(attention)),
            torch.enable_grad(),
        ):
            logits = self._model(**inputs).logits
            best = logits[0].argmax()
            gradients = torch.autograd.grad(logits[:, best].sum(), list(leaves.values())) if leaves else ()
        slopes = dict(zip(leaves, gradients, strict=True))
        heat = None
        # Where a picture or a text may be missing, nothing was kept of it.
        if attention:
            heat = rollout(attention, size)
        elif self._features in leaves:
            heat = grad_cam(leaves[self._features].detach()[:1], slopes[self._features][:1], size)
        words: tuple[Weights, ...] = ()
        if self._words in leaves and tokens is not None:
            # The way is a straight line: from its second to its last point it covers all but one step.
            points = leaves[self._words].detach()
            way = (points[-1] - points[1]) * (STEPS / (STEPS - 1))
            weights = (slopes[self._words][1:].mean(0) * way).sum(-1)
            words = weigh_words(question.texts, tokens, weights.cpu().numpy())
        return Answer(self.classifier.from_logits(logits.detach()[:1])[0], heat, words)

    def _cut(self, inputs: dict[str, Tensor], tokens: Any, leaves: dict[str, Tensor]) -> list[Hook]:
        """Gradients begin at these outputs; in front of them nothing is kept for a way back."""

        def leaf(name: str, value: Tensor) -> Tensor:
            leaves[name] = value.detach().requires_grad_()
            # What comes next may change it in place, which a leaf does not allow.
            return leaves[name].clone()

        def words(table: nn.Module, given: Any, output: Tensor) -> Tensor | None:
            # GPT-2 looks up the kinds of tokens in the same table.
            if not _same(given[0], inputs["input_ids"]):
                return None
            return leaf(str(self._words), self._way_to(output, tokens, table))

        def features(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return leaf(str(self._features), output)

        found = [(self._words, words), (self._features, features)]
        return [(self._model.get_submodule(name), hook) for name, hook in found if name is not None]

    def _way_to(self, vectors: Tensor, tokens: Any, table: Any) -> Tensor:
        """The tokens' vectors, and points on the way to them from padding; what is not of a text stays what it is."""
        stays = [text is None for text in tokens.sequence_ids(0)]
        # Not called, as that would come back here.
        padding = table.forward(torch.tensor([self.classifier.tokenizer.pad_token_id], device=vectors.device))
        start = torch.where(torch.tensor(stays, device=vectors.device)[:, None], vectors[0], padding)
        shares = (torch.arange(STEPS, device=vectors.device)[:, None, None] + 0.5) / STEPS
        return torch.cat([vectors[:1], start + shares * (vectors[:1] - start)])

    def _record(self, attention: list[Tensor]) -> list[Hook]:
        def keep(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
            # Averaged at once: all heads of all layers would take gigabytes for large pictures.
            attention.append(output[1].detach()[0].mean(0))

        return [(self._model.get_submodule(name), keep) for name in self._attention]


@dataclass
class _Seen:
    """Names of the modules of interest, each with the shape of what it returned.

    Attributes:
        attention: of attention over a grid of patches.
        features: of maps of features, in the order in which they were done.
        words: of tables that give each token its vector.
    """

    attention: list[tuple[str, torch.Size]] = field(default_factory=list)
    features: list[tuple[str, torch.Size]] = field(default_factory=list)
    words: list[tuple[str, torch.Size]] = field(default_factory=list)


def _with_visible_attention(model: Any) -> Any:
    """A second model of the same weights that computes attention openly; fused kernels keep it to themselves."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation("eager")
    return twin


def _look(classifier: Classifier, model: Any) -> _Seen:
    """At a pass; beside a picture at two, as a map over it does not change its shape with the text."""
    seen = _look_at_one_pass(classifier, model, "one two three four five")
    if classifier.takes_picture and classifier.takes_text:
        other = _look_at_one_pass(classifier, model, "one")
        seen.attention = [found for found in seen.attention if found in other.attention]
        seen.features = [found for found in seen.features if found in other.features]
    if len({shape for _, shape in seen.attention}) > 1:
        # Windows that shift and merge: what reached what cannot be multiplied up.
        seen.attention = []
    return seen


def _look_at_one_pass(classifier: Classifier, model: Any, text: str) -> _Seen:
    picture = Image.new("RGB", (64, 64), "white") if classifier.takes_picture else None
    inputs, _ = classifier.encode([Question(picture, (text,) * classifier.texts)])
    size = _size(inputs) if picture else None
    seen = _Seen()

    def look(name: str) -> Callable[..., Any]:
        def note(module: nn.Module, given: Any, output: Any) -> None:
            ids = inputs.get("input_ids")
            if isinstance(module, nn.Embedding) and ids is not None and _same(given[0], ids):
                seen.words.append((name, output.shape))
            if size is None:
                return
            if isinstance(output, tuple) and len(output) > 1 and _is_attention(output[1], size):
                seen.attention.append((name, output[1].shape))
            if isinstance(output, Tensor) and _feature_map(output, size) is not None:
                seen.features.append((name, output.shape))

        return note

    # Parts of a model finish before the whole they belong to: what was noted last lies nearest to the head.
    with _hooks([(module, look(name)) for name, module in model.named_modules()]), torch.inference_mode():
        model(**inputs)
    return seen


@contextmanager
def _hooks(pairs: list[Hook]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _size(inputs: dict[str, Tensor]) -> tuple[int, int]:
    """Height and width of the pictures."""
    height, width = inputs["pixel_values"].shape[-2:]
    return height, width


def _same(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and bool((one == other).all())


def _is_attention(tensor: Any, size: tuple[int, int]) -> bool:
    """Of one picture, each token with each other: [1, heads, tokens, tokens]."""
    square = isinstance(tensor, Tensor) and tensor.ndim == 4 and len(tensor) == 1 and tensor.shape[2] == tensor.shape[3]
    return square and grid_of(tensor.shape[2], size) is not None


def _feature_map(tensor: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Features as [channels, rows, columns], if that is what they are: of one picture, in more than one place."""
    if tensor.ndim == 4 and len(tensor) == 1 and min(tensor.shape[2:]) > 1:
        return tensor[0]
    if tensor.ndim == 3 and len(tensor) == 1 and (grid := grid_of(tensor.shape[1], size)) is not None:
        extra, rows, columns = grid
        return tensor[0, extra:].T.reshape(-1, rows, columns)
    return None


def grid_of(tokens: int, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Which grid tokens of a picture of that height and width make: extra tokens in front, rows, columns."""
    height, width = size
    for extra in EXTRA_TOKENS:
        rows = round(((tokens - extra) * height / width) ** 0.5) if tokens > extra + 1 else 0
        if rows > 1 and (tokens - extra) % rows == 0 and rows * width == (tokens - extra) // rows * height:
            return extra, rows, (tokens - extra) // rows
    return None


def rollout(attention: list[Tensor], size: tuple[int, int]) -> HeatMap:
    """How much of each patch reaches the class token, or all tokens where there is none.

    Args:
        attention: of each layer, averaged over its heads [tokens, tokens].
        size: height and width of the picture.
    """
    grid = grid_of(len(attention[0]), size)
    assert grid is not None
    extra, rows, columns = grid
    reached = torch.eye(len(attention[0]), device=attention[0].device)
    for layer in attention:
        # Half of what a token is comes past the attention, by the residual connection.
        reached = (layer + torch.eye(len(layer), device=layer.device)) / 2 @ reached
    row = reached[0] if extra else reached.mean(0)
    return _from_0_to_1(row[extra:].reshape(rows, columns))


def grad_cam(features: Tensor, gradients: Tensor, size: tuple[int, int]) -> HeatMap:
    """Where features speak for the label: weighted by their mean gradients, what speaks against it left out."""
    maps, slopes = _feature_map(features, size), _feature_map(gradients, size)
    assert maps is not None
    assert slopes is not None
    return _from_0_to_1((maps * slopes.mean((1, 2), keepdim=True)).sum(0).clamp(min=0))


def _from_0_to_1(heat: Tensor) -> HeatMap:
    heat = heat - heat.min()
    scaled: HeatMap = (heat / heat.max().clamp(min=1e-12)).float().cpu().numpy()
    return scaled


def weigh_words(texts: tuple[str, ...], tokens: Any, weights: npt.NDArray[np.float32]) -> tuple[Weights, ...]:
    """Pieces of each text with their weights, the strongest of them 1 or -1; the pieces of one word share one.

    Args:
        texts: as they were asked.
        tokens: what the tokenizer returned for them.
        weights: of each token.
    """
    encoding = tokens.encodings[0]
    places = zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, weights.tolist(), strict=False)
    sums: dict[tuple[int, int], list[float]] = {}
    for text, word, (start, end), weight in places:
        if text is None or word is None or start == end:
            continue
        known = sums.setdefault((text, word), [start, end, 0.0])
        known[:] = [min(known[0], start), max(known[1], end), known[2] + weight]
    strongest = max((abs(total) for _, _, total in sums.values()), default=0.0) or 1.0
    pieces: list[Weights] = [[] for _ in texts]
    done = [0] * len(texts)
    for (text, _), (first, last, total) in sorted(sums.items()):
        start, end = max(int(first), done[text]), int(last)
        if start > done[text]:
            pieces[text].append((texts[text][done[text] : start], None))
        if end > start:
            pieces[text].append((texts[text][start:end], total / strongest))
        done[text] = max(done[text], end)
    for number, text in enumerate(texts):
        if done[number] < len(text):
            pieces[number].append((text[done[number] :], None))
    return tuple(pieces)
