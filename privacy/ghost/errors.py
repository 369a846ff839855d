"""What is refused."""


class UnsupportedModelError(ValueError):
    """A layer of the model mixes patients or cannot give per-patient gradients."""
