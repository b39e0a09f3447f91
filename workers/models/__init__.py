"""Models of a family: weights, text encoders, denoisers, discriminators and judges."""
