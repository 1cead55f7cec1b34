"""An XGBoost model file becomes a scoring endpoint."""

__version__ = "0.1.0"
