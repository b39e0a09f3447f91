"""Where cached latents are kept: sealed values in Redis or in memory."""
