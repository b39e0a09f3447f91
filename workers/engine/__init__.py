"""The step loop and what it drives: scheduling, samplers, decoding, previews."""
