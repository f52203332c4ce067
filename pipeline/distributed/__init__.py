"""Several processes that train together, one for each device: torch.distributed."""
