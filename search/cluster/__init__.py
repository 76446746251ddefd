"""Ray clusters: joining, placement, job submission and the autoscaler's hook."""
