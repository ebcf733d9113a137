"""What all tests share: no test depends on how fast the machine is."""

from hypothesis import settings

settings.register_profile("tf_dpfl", deadline=None, print_blob=True)
settings.load_profile("tf_dpfl")
