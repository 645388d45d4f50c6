"""Encoder-decoders of transformers 5.24 that are not converted, and why."""

BY_REASON = {  # a reason -> values of model_type
    "its decoder attends to the target and to the memory in one softmax": "t5gemma2",
    "its encoder attends to blocks and to global tokens": "longt5 led bigbird_pegasus pegasus_x",
    "its experts take a limited number of tokens and drop the others":
        "switch_transformers nllb-moe",
    "its decoder predicts several tokens at each step": "prophetnet xlm-prophetnet",
    "its decoder predicts several audio codes at each step": "dia musicgen musicgen_melody",
    "it is a chain of models that makes audio codes": "bark",
    "it joins two models of any families": "encoder-decoder speech-encoder-decoder",
    "it is several models, for text and for speech": "seamless_m4t seamless_m4t_v2",
    "it is a transducer, whose decoder does not attend to the source":
        "parakeet_rnnt parakeet_tdt nemotron_asr_streaming nemotron3_5_asr",
    "its encoder reads audio": "moonshine_streaming speech_to_text canary cohere_asr pop2piano",
    "its encoder reads raw audio, and a norm of it runs over the padding": "moonshine",
    "it reads or writes spectrograms": "speecht5",
    "its encoder reads images": "pix2struct pp_formulanet",
    "its encoder reads images; convert the decoder alone, and generate from the encoder's output":
        "nougat",
    "its encoder reads images; convert its language model, a BART, and give it embeddings: see "
    "docs/checkpoints.md": "florence2",
    "it reads an image, and the positions of words beside the text": "udop",
    "its arrays have names of their own": "fsmt",
    "it retrieves documents": "rag",
    "it predicts time series, not tokens": "autoformer informer time_series_transformer",
}  # fmt: skip
REASONS = {name: reason for reason, names in BY_REASON.items() for name in names.split()}
"""The reason for each value of model_type."""
