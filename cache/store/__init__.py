"""The store of cached latents: sealed values in Redis or in memory."""
