"""What was asked, and what came out: the only room that writes Zarr.

`keys` names a piece of work before it runs, `schemas` says what it promises, `store` keeps what came out of it.
"""
