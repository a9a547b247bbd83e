"""A checkpoint is not what was written: files are missing, cut or altered."""


class DamageError(Exception):
    """Says what; another checkpoint may be whole."""
