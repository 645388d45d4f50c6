"""The parts of a program that are not derived from the forward pass: loop, arrays, command line."""

import json
from typing import Any

from ..config import ModelConfig
from ..model import Model
from ..text import Vocabulary

HEAD = '''\
"""A model of {n_parameters:,} parameters, {dtype}, as one program, written out by refseq2seq.

{usage}

{sizes}
Variables have the names of refseq2seq's quantities; a comment has the name where it is another.
"""

{imports}

import {xp} as np
'''

USAGE_IDS = """\
    python model.py model.npz 4 8 15    prints the new tokens after the source 4 8 15"""

USAGE_TEXT = """\
    python model.py model.npz TEXT ...    prints the text that follows from each"""

ENCODE = '''

def encode(model, source, mask):
    """Mask, keys and values of the source tokens (batch, n); mask (batch, n): True = real token."""
    encoder, decoder, keys, values = model.encoder, model.decoder, [], []
{body}
    return mask, keys, values
'''

STEP = '''

def step(model, ids, t, memory, cache):
    """Logits (batch, 1, vocab_size) after token number t, from 0, of each row: ids (batch, 1)."""
    decoder, (mask, keys, values), (own_keys, own_values) = model.decoder, memory, cache
{body}
'''

GREEDY = '''

def greedy(model, source, mask, n):
    """The most probable next tokens, at most n: (batch, up to n); {pad} after the end of a row."""
    memory, new = encode(model, source, mask), []
    ids = np.full((len(source), 1), {start})
    going = ids >= 0
    shape, layers = (len(source), {n_kv_heads}, n), range({n_layers})
    cache = [[np.empty((*shape, d), "{dtype}") for _ in layers] for d in {widths}]
    while len(new) < n and going.any():
        logits = step(model, ids, len(new), memory, cache)
{choice}
        going = going{ends}
        new.append(ids)
    return np.concat(new, axis=1)
'''

TREE = '''

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
    """The model of a checkpoint."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name != "checkpoint.json"]
    model = tree({{name: arrays[name].astype("{dtype}") for name in names}})
{tied}    return model
'''

TIED = """\
    model.decoder.embedding = model.decoder.embedding.copy(order="F")  # read by columns, as .T
"""

MAIN_IDS = '''

if __name__ == "__main__":
    source = np.asarray([[int(token) for token in sys.argv[2:]]])
    mask = (0 <= source) & (source < {vocab_size})
    if len(sys.argv) < 3 or not mask.all():
        sys.exit(__doc__)
    print(*greedy(read(sys.argv[1]), source, mask, {n})[0].tolist())
'''

MAIN_TEXT = '''

def spelled(text, vocabulary):
    """The token ids of a text, (1, n)."""
    text = text.translate({{ord(old): new for old, new in vocabulary["replacements"]}})
    symbols = {symbols}
    known = vocabulary["symbols"]
    if unknown := {{*symbols}} - ({{*known}} - {{*vocabulary["special"]}}):
        sys.exit(f"{{text!r}} has unknown symbols: {{', '.join(sorted(unknown))}}")
    return np.asarray([[known.index(symbol) for symbol in symbols]])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    header = json.loads(zipfile.ZipFile(sys.argv[1]).read("checkpoint.json"))
    model, vocabulary = read(sys.argv[1]), header["target_vocabulary"]
    for text in sys.argv[2:]:
        source = spelled(text, header["source_vocabulary"])
        tokens = greedy(model, source, source >= 0, {n})[0].tolist()
        symbols = [vocabulary["symbols"][token] for token in tokens]
        print({separator}.join(s for s in symbols if s not in vocabulary["special"]))
'''


def greedy(c: ModelConfig, dtype: str) -> str:
    """The loop, with the rules of the config."""
    a = c.decoder.self_attention
    return GREEDY.format(
        pad=c.pad_id,
        start=c.decoder_start_id,
        n_kv_heads=a.n_kv_heads,
        n_layers=c.decoder.n_layers,
        widths=(a.d_k, a.d_v),
        dtype=dtype,
        choice="\n".join(f"        {line}" for line in _choice(c)),
        ends="".join(f" & (ids != {token})" for token in c.eos_ids),
    )


def _choice(c: ModelConfig) -> list[str]:
    """The choice of the next tokens. Bans act before forced tokens, and the last of these wins."""
    forces_first = c.forced_bos_id is not None
    begin, lines = int(forces_first), []
    if c.suppressed_ids:
        lines += [f"logits[..., {[*c.suppressed_ids]}] = -math.inf  # suppressed_ids"]
    if c.begin_suppressed_ids:
        banned = f"logits[..., {[*c.begin_suppressed_ids]}] = -math.inf"
        lines += [f"if len(new) == {begin}:", f"    {banned}  # begin_suppressed_ids"]
    lines += ["chosen = logits.argmax(axis=-1)"]
    forced = (("0", "forced_bos_id"), ("n - 1", "forced_eos_id"))
    for index, name in forced:
        if (token := getattr(c, name)) is not None:
            assigned = f"chosen = np.full_like(chosen, {token})  # {name}"
            lines += [f"if len(new) == {index}:", f"    {assigned}"]
    return [*lines, f"ids = np.where(going, chosen, {c.pad_id})"]


def imports(code: str, needed: set[str]) -> str:
    """The imports of a program, in their usual order."""
    modules = {name for name in ("json", "math", "sys", "zipfile") if f"{name}." in code}
    found = {f"import {name}" for name in modules} | needed | {"from types import SimpleNamespace"}
    return "\n".join(sorted(found, key=lambda line: (line.startswith("from"), line)))


def ending(model: Model) -> str:
    """The arrays and the command line."""
    c, dtype = model.config, model.dtype.name
    text = TREE.format(dtype=dtype, tied=TIED if c.tied_logits else "")
    n = c.decoder.max_length or 64
    if not reads_text(model):
        return text + MAIN_IDS.format(vocab_size=c.encoder.vocab_size, n=n)
    old: Any = model.source_vocabulary
    new: Any = model.target_vocabulary
    split = f"text.split({json.dumps(old.separator)}) if text else []"
    symbols = split if old.separator else "list(text)"
    return text + MAIN_TEXT.format(symbols=symbols, separator=json.dumps(new.separator), n=n)


def reads_text(model: Model) -> bool:
    """Whether the program can read and write text: the checkpoint then has both vocabularies."""
    both = (model.source_vocabulary, model.target_vocabulary)
    return all(isinstance(vocabulary, Vocabulary) for vocabulary in both)
