"""The aggregation server: it holds a global model and sums, never an image. Imports privacy and shared_models only."""
