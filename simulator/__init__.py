"""A discrete-event twin of the cluster that runs the same decisions."""
