"""The step loop, scheduling, samplers, image decoding and previews."""
