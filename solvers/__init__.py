"""From a problem to a plan: how many GPUs of each type serve each variant, and which thresholds. Pure."""
