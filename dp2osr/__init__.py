"""DP²O-SR: direct perceptual preference optimisation for real-world image super-resolution."""

__version__ = "0.1.0"
