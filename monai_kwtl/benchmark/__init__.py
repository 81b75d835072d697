"""The paper's protocol as a grid of cells, its baselines and ablations, and what can be said of their results."""
