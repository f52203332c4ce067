"""How good a model is: losses, baselines that need no network, and loss by depth."""
