"""The parts of a program that are not derived from the forward pass: loop, arrays, command line."""

from collections.abc import Callable

import numpy as np

from ..config import FrameInput, ModelConfig, StackConfig
from ..model import Model
from ..text import Vocabulary
from . import layout

HEAD = '''\
"""A model of {n_parameters:,} parameters, {dtype}, as one program, written out by refseq2seq.

    python model.py model.npz {usage}

needs {library} and the arrays of the checkpoint. A variable that holds a quantity of refseq2seq has
its name, or that name after = in a comment.
{sizes}
"""

{imports}

import {xp} as np
'''

ENCODE = '''

def encode(model, {source}, mask):
    """The mask (True = real {token}), and each decoder layer's keys and values of the source."""
    # {shapes}keys and values: of each layer, (batch, n_heads, n, d_k or d_v)
    {stacks}, keys, values = {of}, [], []
{body}
'''

STEP = '''

def step(model, ids, t, memory, cache):
    """Logits after the tokens ids, (batch, 1), at position t, from 0: (batch, 1, vocab_size)."""
    # cache: own keys and values of each layer, (batch, n_heads, at least t + 1, d_k or d_v)
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
{body}
'''

GREEDY = '''

def greedy(model, source, mask, limit):
    """Up to limit new tokens, each of the largest logit, without the start token {start_id}."""
    memory, new = encode(model, source, mask), []
{start}
    while len(new) < limit and going.any():
        logits = step(model, ids, len(new), memory, cache)
{choice}
        new.append(ids)
    return np.concat(new, axis=1)
'''

READ = '''

def tree(arrays):
    """The arrays called a.0.b and so on, as a tree: a[0].b."""
    if "" in arrays:
        return arrays[""]
    groups = {{}}
    for name, x in arrays.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {{}})[rest] = x
    members = {{name: tree(group) for name, group in groups.items()}}
    return list(members.values()) if "0" in members else SimpleNamespace(**members)


def read(path):
    """The arrays of a checkpoint; its configuration is not needed here."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
{result}
'''

TREE = 'tree({{name: arrays[name].astype("{dtype}") for name in names}})'

TIED = """\
    model = {tree}
    model.decoder.embedding = model.decoder.embedding.copy(order="F")  # read by columns: faster
    return model"""

MAIN_IDS = """

if __name__ == "__main__":
    given = sys.argv[2:]
    if not 1 <= len(given){most} or not all(x.isdecimal() and int(x) < {size} for x in given):
        sys.exit(__doc__)
    source = np.asarray([[int(token) for token in given]])
    print(*greedy(read(sys.argv[1]), source, source >= 0, {limit})[0].tolist())
"""

MAIN_FRAMES = """

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    frames = np.load(sys.argv[2])
    if frames.dtype.kind != "f" or frames.ndim != 2 or frames.shape[1] != {size}:
        sys.exit(__doc__)
    if not {least} <= len(frames){most}:
        sys.exit(__doc__)
    mask = np.ones((1, len(frames)), dtype="bool")
    print(*greedy(read(sys.argv[1]), frames[None], mask, {limit})[0].tolist())
"""

MAIN_TEXT = '''

def token_ids(text, vocabulary):
    """The token ids of a text, (1, n)."""
    plain = text.translate({{ord(old): new for old, new in vocabulary["replacements"]}})
    symbols, known = {symbols}, vocabulary["symbols"]
    if unknown := {{*symbols}} - ({{*known}} - {{*vocabulary["special"]}}):
        sys.exit(f"{{text!r}} has unknown symbols: {{sorted(unknown)}}")
    if not 1 <= len(symbols){most}:
        sys.exit(f"{{text!r}} has {{len(symbols)}} symbols: see the head of the program")
    return np.asarray([[known.index(symbol) for symbol in symbols]])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    header = json.loads(zipfile.ZipFile(sys.argv[1]).read("checkpoint.json"))
    model, written = read(sys.argv[1]), header["target_vocabulary"]
    sources = [token_ids(text, header["source_vocabulary"]) for text in sys.argv[2:]]
    for source in sources:
        tokens = greedy(model, source, source >= 0, {limit})[0].tolist()
        symbols = [written["symbols"][token] for token in tokens]
        print(written["separator"].join(s for s in symbols if s not in written["special"]))
'''


def head(model: Model, sizes: str, needed: set[str], code: str) -> str:
    """The beginning: what the program is, and what its ``code`` imports."""
    c, uses_numpy = model.config, model.xp is np
    modules = {name for name in ("json", "math", "sys", "zipfile") if f"{name}." in code}
    found = {f"import {name}" for name in modules} | needed | {"from types import SimpleNamespace"}
    usage = f"4 8 15    prints up to {_limit(c)} new tokens"
    if reads_text(model):
        usage = f"TEXT ...    prints up to {_limit(c)} symbols each"
    least, most = _lengths(c.encoder)
    if isinstance(c.encoder.input, FrameInput):
        usage = usage.replace("4 8 15", "frames.npy") + (
            f"\n    frames.npy: floats (n_frames, {c.encoder.input.n_features}), "
            f"n_frames at least {least}" + (f" and at most {most}" if most else "")
        )
    elif most:
        usage += f"; a source has at most {most}"
    return HEAD.format(
        n_parameters=model.n_parameters,
        dtype=model.dtype.name,
        usage=usage,
        library="NumPy 2" if uses_numpy else "CuPy 14",
        sizes=sizes,
        imports="\n".join(sorted(found, key=lambda line: (line.startswith("from"), line))),
        xp="numpy" if uses_numpy else "cupy",
    )


def encode(c: ModelConfig, body: Callable[[str], str]) -> str:
    """The function that encodes a source, whose statements ``body`` gives for its name."""
    source, token, shapes = "source", "token", "source and mask (batch, n); "
    if isinstance(c.encoder.input, FrameInput):
        source, token = "frames", "frame"
        shapes = "frames (batch, n_frames, n_features), mask (batch, n_frames)\n    # "
    text = body(source)
    stacks = [name for name in ("encoder", "decoder") if f"{name}." in text]
    return ENCODE.format(
        source=source,
        token=token,
        shapes=shapes,
        stacks=", ".join(stacks),
        of=", ".join(f"model.{name}" for name in stacks),
        body=text,
    )


def greedy(c: ModelConfig, dtype: str) -> str:
    """The loop, with the rules of the config. Of two tokens that it forces, the last wins."""
    a, begins = c.decoder.self_attention, [*c.begin_suppressed_ids]
    first, last = int(c.forced_bos_id is not None), c.forced_eos_id
    empty = f'np.empty((len(source), {a.n_kv_heads}, limit, d), "{dtype}")'
    ban, force = "logits[..., {}] = -math.inf", "chosen = np.full(chosen.shape, {})"
    ends = f"~np.isin(ids, np.asarray({c.eos_ids}))"
    if len(c.eos_ids) == 1:
        ends = f"(ids != {c.eos_ids[0]})"
    full = f"np.full((len(source), 1), {c.decoder_start_id})"
    start = [
        f'ids, going = {full}, np.ones((len(source), 1), dtype="bool")',
        f"cache = [[{empty} for _ in range({c.decoder.n_layers})] for d in {(a.d_k, a.d_v)}]",
    ]
    banned = (("banned", [*c.suppressed_ids]), ("at_first", begins))
    start += [f"{name} = np.asarray({ids})" for name, ids in banned if ids]
    rules = (  # at which new token, what is done, by which field, and whether the config has it
        ("", ban.format("banned"), "suppressed_ids", c.suppressed_ids),
        (first, ban.format("at_first"), "begin_suppressed_ids", begins),
        ("", "chosen = logits.argmax(axis=-1)", "", True),
        (0, force.format(c.forced_bos_id), "forced_bos_id", first),
        ("limit - 1", force.format(last), "forced_eos_id", last is not None),
        ("", f"ids = np.where(going, chosen, {c.pad_id})", "pad_id", True),
        ("", f"going = going & {ends}", "eos_ids", c.eos_ids),
    )
    choice = []
    for at, code, field, holds in rules:
        if holds:
            choice += [f"        if len(new) == {at}:"] * (at != "")
            lines = layout.wrapped(code, 8 if at == "" else 12)
            choice += layout.with_comment(lines, field and f"# {field}")
    return GREEDY.format(
        start_id=c.decoder_start_id,
        start="\n".join(line for code in start for line in layout.wrapped(code, 4)),
        choice="\n".join(choice),
    )


def ending(model: Model) -> str:
    """The arrays and the command line."""
    c, tree = model.config, TREE.format(dtype=model.dtype.name)
    text = READ.format(result=TIED.format(tree=tree) if c.tied_logits else f"    return {tree}")
    least, most = _lengths(c.encoder)
    limits = {"limit": _limit(c), "most": f" <= {most}" if most else ""}
    if isinstance(c.encoder.input, FrameInput):
        return text + MAIN_FRAMES.format(size=c.encoder.input.n_features, least=least, **limits)
    if not reads_text(model):
        return text + MAIN_IDS.format(size=c.encoder.vocab_size, **limits)
    split = 'plain.split(vocabulary["separator"]) if plain else []'
    separator = model.source_vocabulary.separator  # type: ignore[union-attr]
    return text + MAIN_TEXT.format(symbols=split if separator else "list(plain)", **limits)


def _lengths(c: StackConfig) -> tuple[int, int | None]:
    """The smallest and largest number of tokens or frames of a source."""
    least, most = 1, c.max_length
    if isinstance(c.input, FrameInput):
        most = most and most - c.input.n_class_tokens
        for layer in reversed(c.input.layers):
            first = layer.window - 2 * layer.padding
            least = (least - 1) * layer.stride + first
            most = most and most * layer.stride + first - 1
    return least, most


def _limit(c: ModelConfig) -> int:
    """The maximum number of new tokens on the command line."""
    return c.decoder.max_length or 64


def reads_text(model: Model) -> bool:
    """Whether the program can read and write text: the checkpoint then has both vocabularies."""
    both = (model.source_vocabulary, model.target_vocabulary)
    return all(isinstance(vocabulary, Vocabulary) for vocabulary in both)
