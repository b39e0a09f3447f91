"""From a family and the prompts of its users to a measured service: ``weir adopt``."""
