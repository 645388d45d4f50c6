"""What a step of decoding costs a device: how often the host waits, and what is launched.

Counted on the double. The numbers of today are upper bounds: who lowers one lowers it here.
"""

import dataclasses
import functools
from collections import Counter
from pathlib import Path

import arrangements
import numpy as np
import pytest
from backends.double import Device

import refseq2seq as rs
from refseq2seq.config import TokenInput

SOURCE = [[3, 4, 5, 6], [7, 8, 9, 10]]


def pre_norm(n_layers):
    """The layer that is usually counted: pre-norm, biases, ReLU."""
    config = arrangements.small_vaswani(d_model=14, vocab_size=29, n_layers=n_layers, d_ff=31)
    norms = {"norm_positions": ("before",), "final_norm": True}
    return dataclasses.replace(
        config,
        encoder=dataclasses.replace(config.encoder, **norms),
        decoder=dataclasses.replace(config.decoder, **norms),
    )


def with_layers(name, n_layers):
    if name == "pre-norm":
        return pre_norm(n_layers)
    config = arrangements.ALL[name]
    return dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, n_layers=n_layers)
    )


def cost(config, search=rs.generate, source=SOURCE, steps=(3, 5), **options):
    """Launches and reads of one step: a longer decoding less a shorter one, by their steps."""
    device, totals = Device(), []
    with device.installed():
        model = rs.Model.random(config, 0).to("cupy")
        source = source(model) if callable(source) else source
        for n in steps:
            before, reads = Counter(device.launches), device.reads
            search(model, source, max_new_tokens=n, eos_ids=(), **options)
            totals.append((device.launches - before, device.reads - reads))
    (short, few), (long, many) = totals
    apart = steps[1] - steps[0]
    return (long - short).total() / apart, (many - few) / apart


# name of the arrangement: launches of a decoder layer in a step, and of the rest of the step
LAUNCHES = {
    "pre-norm": (60, 62),
    "vaswani": (60, 55),
    "x_transformers": (54, 52),
    "t5_like": (45, 51),
}


def launches(name):
    """Of a decoder layer, and of the rest of a greedy step."""
    two, three = (cost(with_layers(name, n))[0] for n in (2, 3))
    return three - two, two - 2 * (three - two)


SEARCHES = {
    "greedy": (rs.generate, {}),
    "sample": (rs.generate, {"choose": rs.sample(rs.temperature(0.7), rs.top_k(5), rs.top_p(0.9))}),
    "beams": (rs.beam_search, {"beams": 3}),
}


@pytest.mark.parametrize(("name", "bounds"), LAUNCHES.items(), ids=LAUNCHES)
def test_launches_of_a_layer_and_of_the_rest_of_a_step(name, bounds):
    layer, rest = launches(name)
    assert layer <= bounds[0]
    assert rest <= bounds[1]


def test_the_documentation_has_the_same_numbers():
    page = Path(__file__).parents[2] / "docs" / "cupy.md"
    rows = [f"| {name} | {layer} | {rest} |" for name, (layer, rest) in LAUNCHES.items()]
    assert "\n".join(rows) in page.read_text("utf-8")


@pytest.mark.parametrize(("search", "options"), SEARCHES.values(), ids=SEARCHES)
def test_a_step_waits_for_the_device_once(search, options):
    assert cost(with_layers("vaswani", 2), search, **options)[1] <= 1


@pytest.mark.parametrize(
    "change",
    [{"source": SOURCE[:1]}, {"source": SOURCE * 4}, {"steps": (9, 13)}],
    ids=["one row", "eight rows", "later"],
)
def test_launches_depend_on_neither_batch_nor_length(change):
    config = with_layers("x_transformers", 2)
    assert cost(config, **change) == cost(config)


FRAMES = [np.ones((n, arrangements.frames.encoder.input.n_features)) for n in (9, 7)]


@pytest.mark.parametrize("search", [rs.generate, rs.beam_search])
def test_a_step_costs_the_same_whatever_the_source_is(search):
    """Frames, embeddings and a given memory leave no read, and no launch, to the steps."""
    config = arrangements.frames
    tokens = dataclasses.replace(
        config, encoder=dataclasses.replace(config.encoder, input=TokenInput(vocab_size=29))
    )
    of_tokens = cost(tokens, search)
    assert of_tokens[1] <= 1
    assert cost(config, search, source=FRAMES[:1] * 2) == of_tokens
    assert cost(config, search, source=FRAMES)[1] == of_tokens[1]
    vectors = np.ones((2, 4, config.encoder.d_model), "float32")
    assert cost(tokens, search, source=vectors)[1] == of_tokens[1]
    project = functools.partial(rs.project_memory, hidden=vectors, mask=np.ones((2, 4), bool))
    assert cost(config, search, source=project)[1] == of_tokens[1]


@pytest.mark.parametrize(
    ("config", "source"), [(with_layers("vaswani", 2), SOURCE), (arrangements.frames, FRAMES)]
)
def test_encoding_never_waits(config, source):
    device = Device()
    with device.installed():
        model = rs.Model.random(config, 0).to("cupy")
        rs.forward(model, source, [[1, 4], [1, 5]])
    assert device.reads == 0
