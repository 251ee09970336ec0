"""What can go wrong, sorted by whose turn it is to act."""


class TokenflowError(Exception):
    """Base of every error that is shown to a user as one sentence: what, where, and the way out."""


class InputError(TokenflowError):
    """The user's input cannot be used (a file, an option, a model); the command line exits with 2."""


class StoreError(TokenflowError):
    """The store cannot do what was asked (unwritable, full, damaged); the command line exits with 1."""


class SchemaError(StoreError):
    """An artifact breaks its schema; the sentence names the artifact, the variable and the rule."""


class StorePlaceError(StoreError, InputError):
    """The place chosen for the store cannot take it (no permission, disk full); the command line exits with 2."""


class SilentPlaceError(StorePlaceError):
    """The place does not answer now, and may a little later."""


class FullPlaceError(StorePlaceError):
    """The place has no room for what is to be written."""


class Terminated(KeyboardInterrupt):
    """Somebody ends this process, as systemd and docker stop do, by SIGTERM; the command line exits with 143."""
