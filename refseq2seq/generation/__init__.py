"""From an encoded source to targets: requests, the loop, beam search, choosers, processors."""
