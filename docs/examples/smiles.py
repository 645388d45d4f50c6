"""ANNalog, a network that a stranger trained to write analogues of a molecule, in refseq2seq.

pip install torch && pip install --no-deps annalog==1.0.6 && python smiles.py "CC(=O)OCCCl"
"""

import pickletools
import re
import sys
from importlib.util import find_spec

import refseq2seq as rs
from refseq2seq import config, presets
from refseq2seq.convert import convert_params, numbered, same, transposed

STACK = {"input": config.TokenInput(vocab_size=59), "d_model": 256, "n_layers": 3}
STACK |= {"embedding_scale": 256**0.5, "norm_positions": ("after",), "final_norm": False}
STACK["norm"] = config.NormConfig(kind="layer_norm", eps=1e-5, gain="vector", bias=True)
STACK["positions"] = config.LearnedPositions(n_positions=102, offset=0, scale=1.0)
STACK["feed_forward"] = config.FeedForwardConfig(
    d_ff=512, activation="relu", gated=False, biases=("in", "out"), hidden_norm=None
)
HEADS = presets.plain_attention(n_heads=8, d_k=256 // 8, biases=("q", "k", "v", "o"))
STACKS = [presets.plain_stack(HEADS, cross=cross, **STACK) for cross in (False, True)]
TOKENS = {"pad_id": 1, "decoder_start_id": 2, "eos_ids": (3,)}
CONFIG = presets.plain_model(*STACKS, tied=False, logits_bias=True, **TOKENS)

LINEAR = {f"self_attention.?_{x}": f"self_attention.fc_{x}" for x in "qkvo"}
LINEAR |= {f"cross_attention.?_{x}": f"encoder_attention.fc_{x}" for x in "qkvo"}
LINEAR["feed_forward.?_in"] = "positionwise_feedforward.fc_1"
LINEAR["feed_forward.?_out"] = "positionwise_feedforward.fc_2"
NORMS = {"self": "self_attn", "cross": "enc_attn", "feed_forward": "ff"}
TABLE = {"unembedding": ("decoder.fc_out.weight", transposed)}
TABLE["logits_bias"] = "decoder.fc_out.bias", same
for side in ("encoder", "decoder"):
    TABLE[f"{side}.embedding"] = f"{side}.tok_embedding.weight", same
    TABLE[f"{side}.positions"] = f"{side}.pos_embedding.weight", same
    at = f"{side}.layers.*."
    for ours, theirs in LINEAR.items():
        TABLE[at + ours.replace("?", "w")] = f"{at}{theirs}.weight", transposed
        TABLE[at + ours.replace("?", "b")] = f"{at}{theirs}.bias", same
    for ours, theirs in NORMS.items():
        TABLE[f"{at}{ours}_norms.after.gain"] = f"{at}{theirs}_layer_norm.weight", same
        TABLE[f"{at}{ours}_norms.after.bias"] = f"{at}{theirs}_layer_norm.bias", same


def load():
    """The package's model and vocabulary; of the vocabulary's pickle, only the strings are read."""
    import torch

    folder = find_spec("annalog").submodule_search_locations[0] + "/ckpt_and_vocab"
    arrays = torch.load(f"{folder}/Lev_extended.pt", map_location="cpu", weights_only=True)
    params = convert_params(CONFIG, numbered(CONFIG, TABLE), arrays)
    with open(f"{folder}/stereo_experiment_vocab_ttf.pkl", "rb") as file:
        strings = [x for op, x, _ in pickletools.genops(file) if op.name == "SHORT_BINUNICODE"]
    symbols, special = tuple(strings[1:60]), tuple(strings[1:5])
    words = rs.Vocabulary(symbols=symbols, separator=" ", special=special, replacements=())
    return rs.Model(config=CONFIG, params=params, source_vocabulary=words, target_vocabulary=words)


def encode(model, molecule):
    """The ids of <sos>, the molecule's atoms, bonds and brackets, and <eos>."""
    symbols = re.findall(r"\[[^]]*\]|%\d\d|Br|Cl|.", molecule)
    return [2, *model.source_vocabulary.encode(" ".join(symbols)), 3]


if __name__ == "__main__":
    model = load()
    for molecule in sys.argv[1:]:
        tokens = rs.generate(model, [encode(model, molecule)]).tokens[0]
        print(molecule, model.target_vocabulary.decode(tokens).replace(" ", ""))
