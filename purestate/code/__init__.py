"""Fingerprints of code and of plain Python objects: is this the function, class or module that it was before?

* ``_canonical``   syntax trees and bytecode as bytes
* ``_source``      from a code object to its exact source
* ``_package``     the user's code or an installed package's
* ``_walk``        functions and classes, and what they reach
* ``_content``     values and objects
* ``_fingerprint`` the door: `fingerprint`, `describe`
* ``_module``      `describe_module`

Data is fingerprinted in ``purestate.data``, which is handed `describe` and imports nothing from here.
"""

from purestate.code._fingerprint import Fingerprint, describe, fingerprint
from purestate.code._module import describe_module

__all__ = ["Fingerprint", "describe", "describe_module", "fingerprint"]
