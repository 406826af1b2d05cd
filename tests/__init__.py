"""A package, so that `tests` means this folder also where another one is on the path, such as the one in IPython 7's extensions."""
