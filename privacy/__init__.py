"""Differential privacy and (next) secure aggregation. Imports no other package of Collegium."""
