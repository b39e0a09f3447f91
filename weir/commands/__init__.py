"""The commands, a module for each group. Only these may import the other rooms: they compose them."""
