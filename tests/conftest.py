"""What all tests share: no test depends on the machine's speed or on who started it."""

import signal

from hypothesis import settings

settings.register_profile("tf_dpfl", deadline=None, print_blob=True)
settings.load_profile("tf_dpfl")

# A shell starts its background jobs with SIGINT ignored, and programs hand that on to
# their children: what a test interrupts would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
