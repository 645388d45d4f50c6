"""Encoder-decoders of transformers 5.24 that are not converted, and why."""

AUDIO, IMAGES = "its encoder reads audio", "its encoder reads images"
STREAMS = "its decoder predicts several audio codes at each step"
BLOCKS = "its encoder attends to blocks and to global tokens"
EXPERTS = "its experts take a limited number of tokens and drop the others"
TRANSDUCER = "it is a transducer, whose decoder does not attend to the source"
NUMBERS = "it predicts time series, not tokens"
TWO_MODELS = "it joins two models of any families"

REASONS = {  # by model_type
    "t5gemma2": "its decoder attends to the target and to the memory in one softmax",
    "longt5": BLOCKS,
    "led": BLOCKS,
    "bigbird_pegasus": BLOCKS,
    "pegasus_x": BLOCKS,
    "switch_transformers": EXPERTS,
    "nllb-moe": EXPERTS,
    "prophetnet": "its decoder predicts several tokens at each step",
    "xlm-prophetnet": "its decoder predicts several tokens at each step",
    "fsmt": "its names of arrays are its own",
    "rag": "it retrieves documents",
    "udop": "it reads an image and the places of words beside the text",
    "encoder-decoder": TWO_MODELS,
    "speech-encoder-decoder": TWO_MODELS,
    "moonshine": "its encoder reads raw audio, and a norm of it runs over the padding",
    "moonshine_streaming": AUDIO,
    "speech_to_text": AUDIO,
    "seamless_m4t": "it is several models, for text and for speech",
    "seamless_m4t_v2": "it is several models, for text and for speech",
    "canary": AUDIO,
    "cohere_asr": AUDIO,
    "pop2piano": AUDIO,
    "speecht5": "it reads or writes spectrograms",
    "bark": "it is a chain of models that makes audio codes",
    "dia": STREAMS,
    "musicgen": STREAMS,
    "musicgen_melody": STREAMS,
    "parakeet_rnnt": TRANSDUCER,
    "parakeet_tdt": TRANSDUCER,
    "nemotron_asr_streaming": TRANSDUCER,
    "nemotron3_5_asr": TRANSDUCER,
    "pix2struct": IMAGES,
    "pp_formulanet": IMAGES,
    "nougat": f"{IMAGES}; convert the decoder alone and generate from the output of the encoder",
    "florence2": f"{IMAGES}; convert its language model, a BART, and give it embeddings: see "
    "docs/checkpoints.md",
    "autoformer": NUMBERS,
    "informer": NUMBERS,
    "time_series_transformer": NUMBERS,
}
