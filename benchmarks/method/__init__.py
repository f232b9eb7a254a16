"""The mixture gates and the papers' baselines on the zoo: see `__main__`."""
