"""The approximate cache: runs resume from states of similar prompts, which saves steps (NIRVANA, NSDI 2024)."""
