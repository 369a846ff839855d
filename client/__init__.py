"""One hospital's site: its data, its decisions, its training. Imports privacy and shared_models only."""
