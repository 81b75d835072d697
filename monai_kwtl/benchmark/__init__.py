"""The paper's protocol, its baselines and ablations, and what can be said of their results."""
