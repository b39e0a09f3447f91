"""From a problem to a plan: how many GPUs of each type draw light and heavy images, and which threshold. Pure."""
