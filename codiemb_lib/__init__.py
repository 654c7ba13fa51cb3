"""CoDiEmb brought to life: one text encoder trained for retrieval and similarity together."""

__version__ = "0.1.0"
