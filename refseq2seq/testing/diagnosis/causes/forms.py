"""Other functions in the place of the softmax and of the activation."""

from collections.abc import Callable, Iterator

import numpy as np

from ....ops import ACTIVATIONS, sigmoid, softmax
from ..entering import parsed
from ..replay import Scene, mask_of, member
from .masks import widened
from .trial import Trial, computed, found, of_quantity

Function = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS_OF_OTHERS: dict[str, Function] = {
    "x sigmoid(1.702 x), the quick GELU": lambda x: x * sigmoid(1.702 * x),
    "left out": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "ReLU with slope 0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "|x|": np.abs,
}


def other_functions(scene: Scene, name: str) -> Iterator[Trial]:
    """Other functions of the scores, or of the projected input."""
    here = parsed(name)
    if here.kind == "weights":
        mask = widened(mask_of(scene, name), scene.passed[name].shape[-1])
        for text, f in _softmaxes(mask).items():
            yield of_quantity(
                "SoftmaxForm", f"{text} ({here.c})", name, computed(f, f"{here.p}.scores")
            )
        if (cap := member(scene.config, here.c).softcap) is not None:
            change = computed(lambda x: softmax(np.where(mask, x, -cap)), f"{here.p}.scores")
            text = f"scores are capped after the mask ({here.c}.softcap)"
            yield of_quantity("CapOrder", text, name, change)
    elif here.kind == "hidden" and (c := member(scene.config, here.c)).hidden_norm is None:
        inputs = [f"{here.p}.gate", f"{here.p}.projected"] if c.gated else [f"{here.p}.projected"]
        for called, f in ACTIVATIONS_OF_OTHERS.items():
            text = f"activation is {called}; the model has {c.activation} ({here.c}.activation)"
            change = computed(_times_second(f) if c.gated else f, *inputs)
            yield of_quantity("Activation", text, name, change)
        bias = found(scene.params, f"{here.p}.b_in")
        if bias is not None and not c.gated:
            after = _bias_after(ACTIVATIONS[c.activation], bias)
            text = "the bias is added after the activation"
            yield of_quantity("Activation", text, name, computed(after, *inputs))
        for text, form in _gated_forms(ACTIVATIONS[c.activation]).items() if c.gated else ():
            yield of_quantity("Activation", text, name, computed(form, *inputs))


def _bias_after(f: Function, bias: np.ndarray) -> Function:
    return lambda projected: f(projected - bias) + bias


def _times_second(f: Function) -> Callable[..., np.ndarray]:
    return lambda gate, up: f(gate) * up


def _gated_forms(f: Function) -> dict[str, Callable[..., np.ndarray]]:
    """Other functions of gate and projected input than f(gate) up."""
    return {
        "both factors are activated": lambda gate, up: f(gate) * f(up),
        "the activated gate is added": lambda gate, up: f(gate) + up,
        "the product is activated": lambda gate, up: f(gate * up),
        "there is no gate": lambda gate, up: f(up),
    }


def _softmaxes(mask: np.ndarray) -> dict[str, Function]:
    """Functions of scores in the place of the softmax over the keys."""

    def over(axis: int) -> Function:
        def weights(x: np.ndarray) -> np.ndarray:
            x = np.moveaxis(np.where(mask, x, -1e30), axis, -1)
            return np.moveaxis(softmax(x), -1, axis)

        return weights

    def one_more(x: np.ndarray) -> np.ndarray:
        top = x.max(axis=-1, keepdims=True)
        e = np.where(mask, np.exp(x - top), 0.0)
        return e / (np.exp(-top) + e.sum(axis=-1, keepdims=True))

    return {
        "the softmax runs over the queries": over(-2),
        "the softmax runs over the heads": over(1),
        "the softmax runs over the batch": over(0),
        "the mask is applied after the softmax": lambda x: softmax(x) * mask,
        "masked scores are 0, not -infinity": lambda x: softmax(np.where(mask, x, 0.0)),
        "1 is added to the denominator of the softmax": one_more,
        "the weights are sigmoids": lambda x: np.where(mask, sigmoid(x), 0.0),
        "there is no softmax": lambda x: np.where(mask, x, 0.0),
    }
