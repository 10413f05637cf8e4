"""The error that users meet when what they gave cannot be used."""


class DataError(ValueError):
    """Something given cannot be used as it is; the message names the file, the record and the remedy."""
