"""Speech for Whisper: from a sound to features, from a prompt and tokens to timed text."""

from .mel import log_mel
from .sound import read_wav
from .whisper import Segment, prompt, segments, special_ids

__all__ = ["Segment", "log_mel", "prompt", "read_wav", "segments", "special_ids"]
