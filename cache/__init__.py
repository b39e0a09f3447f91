"""The approximate cache: a similar earlier prompt saves the heavy variant a part of its steps (NIRVANA, NSDI 2024)."""
