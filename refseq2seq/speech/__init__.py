"""Speech for Whisper: features of a sound, prompts, and timed segments of text."""

from .mel import log_mel
from .sound import read_wav
from .whisper import Segment, prompt, segments, special_ids

__all__ = ["Segment", "log_mel", "prompt", "read_wav", "segments", "special_ids"]
